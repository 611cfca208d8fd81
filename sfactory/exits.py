"""Exit codes: what a script, a scheduler or a person reads from a run that is over."""

from enum import IntEnum


class Exit(IntEnum):
    """One number per kind of end. The last line on stderr says the same in words."""

    FINISHED = 0
    """A stop rule was reached."""
    BUG = 1
    """An internal bug; the traceback stands above the last line."""
    USAGE = 2
    """Command line or configuration: unknown names, bad values, an existing folder, nothing to resume, no extra."""
    BUSY = 3
    """Another process trains in this folder."""
    RESUME_REFUSED = 4
    """What was changed cannot be changed in the middle of a run; the differences are listed."""
    NO_USABLE_CHECKPOINT = 5
    """There are checkpoints, and every one is damaged."""
    ENVIRONMENT = 6
    """The environment cannot be built, or raises beyond the budget."""
    WORKER_LOST = 7
    """A worker died more often than the budget allows, or the learner died."""
    STALLED = 8
    """No finished update for run.stall-timeout seconds."""
    NON_FINITE = 9
    """Losses or gradients were not finite, several updates in a row."""
    STORAGE = 10
    """Checkpoints cannot be written."""
    RESOURCES = 11
    """Memory or file descriptors do not suffice; nothing was started."""
    REQUEUE = 75
    """Stopped to be started again by the scheduler."""
    INTERRUPTED = 130
    """Ctrl-C; with a checkpoint if it came once."""
    TERMINATED = 143
    """SIGTERM or SIGHUP, with a checkpoint."""

    @property
    def outcome(self) -> str:
        """The word for people."""
        return _WORDS[self]


_WORDS = {
    Exit.FINISHED: "finished",
    Exit.BUG: "internal bug",
    Exit.USAGE: "usage",
    Exit.BUSY: "busy",
    Exit.RESUME_REFUSED: "resume refused",
    Exit.NO_USABLE_CHECKPOINT: "no usable checkpoint",
    Exit.ENVIRONMENT: "environment fault",
    Exit.WORKER_LOST: "worker lost",
    Exit.STALLED: "stalled",
    Exit.NON_FINITE: "non-finite",
    Exit.STORAGE: "storage",
    Exit.RESOURCES: "resources refused",
    Exit.REQUEUE: "requeue",
    Exit.INTERRUPTED: "interrupted",
    Exit.TERMINATED: "terminated",
}
