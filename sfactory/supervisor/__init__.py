"""The supervisor process: starts, watches, restarts and stops the workers; lockstep runs them in one process."""
