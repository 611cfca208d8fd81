"""One update of the policy from one batch. No processes, no shared memory."""
