"""How a command ends: exit codes for scripts and schedulers, and the last line on stderr for people."""

from __future__ import annotations

import errno
import shlex
import sys
import traceback
from enum import IntEnum
from pathlib import Path


class Exit(IntEnum):
    """One number per kind of end. The last line on stderr says the same in words."""

    FINISHED = 0
    """A stop rule was reached."""
    BUG = 1
    """An internal bug; the traceback stands above the last line."""
    USAGE = 2
    """Command line or configuration: bad names and values, an existing folder, nothing to resume, no extra."""
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


UNGUARDED = 12
"""Exit code of a worker that met `sfactory.train` in the script it imports; never one of a command."""


class Ended(Exception):
    """The command is over before anything ran: exit code and one sentence."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


def resume_command(run_dir: Path) -> str:
    """What to type to go on."""
    return f"sfactory resume {shlex.quote(str(run_dir))}"


def last_line(
    code: Exit,
    outcome: str,
    sentence: str,
    checkpoint: str = "",
    env_steps: int = 0,
    run_dir: Path | None = None,
) -> int:
    """Write the last line on stderr, without the parts that do not exist; returns the exit code."""
    line = f"sfactory: {outcome} (exit {int(code)}): {' '.join(sentence.split())}"
    if checkpoint:
        path = Path(checkpoint)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        at = int(path.name) if path.name.isdigit() else env_steps  # training may have gone on since
        line += f"; last checkpoint {path} at {at:,} steps"
        if run_dir is not None:
            line += f"; resume: {resume_command(run_dir)}"
    print(line, file=sys.stderr, flush=True)
    return int(code)


def told(error: Exception) -> tuple[Exit, str, str]:
    """Exit code, outcome and sentence of an exception. A bug shows its traceback first.

    Classes are known by name: importing their rooms here would cost every command numpy and more.
    """
    kinds, text = {cls.__name__ for cls in type(error).__mro__}, str(error)
    if "EnvError" in kinds:
        code = Exit.ENVIRONMENT if getattr(error, "fault", False) else Exit.USAGE
    elif "RunBusy" in kinds:
        code = Exit.BUSY
    elif "CheckpointError" in kinds:
        code = Exit.USAGE if "no checkpoint" in text else Exit.NO_USABLE_CHECKPOINT
    elif isinstance(error, MemoryError) or getattr(error, "errno", None) in _SHORTAGE:
        code = Exit.RESOURCES
    elif isinstance(error, OSError):
        code = Exit.STORAGE
    elif isinstance(error, ValueError) and _raised_here(error):
        code = Exit.USAGE
    else:
        traceback.print_exception(error)
        code, text = Exit.BUG, f"{type(error).__name__}: {text}"
    return code, code.outcome, text


_SHORTAGE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def _raised_here(error: Exception) -> bool:
    """Our own ValueError speaks to the user; one out of a library, deep below, is a bug of ours."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)
