"""How a command ends: exit codes for scripts and schedulers, and the last line on stderr for people."""

from __future__ import annotations

import errno
import shlex
import sys
import traceback
from collections.abc import Iterable
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


class CommandError(Exception):
    """A command that ends before anything ran: exit code and one sentence."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code, self.sentence = code, sentence


class SettingError(ValueError):
    """A setting that cannot be used; its text is one line for people."""

    exit_code = Exit.USAGE


class EnvError(ValueError):
    """An environment that cannot be had as asked for; one line. `fault`: it exists and failed by itself."""

    def __init__(self, message: str, fault: bool = False) -> None:
        super().__init__(message)
        self.fault = fault

    @property
    def exit_code(self) -> Exit:
        return Exit.ENVIRONMENT if self.fault else Exit.USAGE


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""

    exit_code = Exit.NO_USABLE_CHECKPOINT


class NoCheckpointError(CheckpointError):
    """There is no checkpoint where one was expected."""

    exit_code = Exit.USAGE


class RunBusy(RuntimeError):
    """Another trainer holds the run folder."""

    exit_code = Exit.BUSY


def resume_command(run_dir: Path) -> str:
    """What to type to go on."""
    return f"sfactory resume {shlex.quote(str(run_dir))}"


def print_exit_line(
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


def exit_of(error: Exception) -> tuple[Exit, str]:
    """Exit code and sentence of an exception. A bug prints its traceback first."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, Exit):
        return code, str(error)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _SHORTAGE:
        return Exit.RESOURCES, str(error)
    if isinstance(error, OSError):
        return Exit.STORAGE, str(error)
    if isinstance(error, ValueError) and _raised_here(error):
        return Exit.USAGE, str(error)
    traceback.print_exception(error)
    return Exit.BUG, f"{type(error).__name__}: {error}"


_SHORTAGE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


def _raised_here(error: Exception) -> bool:
    """Our own ValueError speaks to the user; one out of a library, deep below, is a bug of ours."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest of `known`, or an empty string where nothing is near.

    Upper and lower case are the same. Of a dotted name the last part is enough: lr -> optim.lr.
    """
    import difflib

    whole: dict[str, str] = {}
    last_part: dict[str, str] = {}
    for name in known:
        whole.setdefault(name.lower(), name)
        last_part.setdefault(name.lower().rpartition(".")[2], name)
    near = [whole[hit] for hit in difflib.get_close_matches(word.lower(), whole, 1, 0.6)]
    if not near:
        last = word.lower().rpartition(".")[2]
        near = [last_part[hit] for hit in difflib.get_close_matches(last, last_part, 1, 0.75)]
    return f"; did you mean {near[0]}?" if near else ""
