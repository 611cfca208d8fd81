"""Exit codes, and every error a user can meet; each exception carries its exit code."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any


class Exit(IntEnum):
    """Exit code of a command. The last line on stderr has the same meaning in words."""

    FINISHED = 0
    """A stop rule was reached."""
    BUG = 1
    """An internal bug; the traceback is printed above the last line."""
    USAGE = 2
    """Command line or configuration: bad names and values, an existing folder, nothing to resume, no extra."""
    BUSY = 3
    """Another process trains in this folder."""
    RESUME_REFUSED = 4
    """A changed setting cannot change during a run, or the spaces of its environment have changed."""
    NO_USABLE_CHECKPOINT = 5
    """There are checkpoints, and all of them are damaged."""
    ENVIRONMENT = 6
    """The environment cannot be built, or raises beyond the budget."""
    WORKER_LOST = 7
    """A worker exited more often than the budget allows, or the learner exited, of this rank or of another one."""
    STALLED = 8
    """No environment step and no update for run.stall-timeout seconds."""
    NON_FINITE = 9
    """Losses or gradients were not finite, several updates in a row."""
    STORAGE = 10
    """Checkpoints cannot be written."""
    RESOURCES = 11
    """Not enough memory or file descriptors; nothing was started."""
    REQUEUE = 75
    """Stopped for the scheduler, which starts it again."""
    INTERRUPTED = 130
    """Ctrl-C; with a checkpoint unless it was pressed twice."""
    TERMINATED = 143
    """SIGTERM or SIGHUP, with a checkpoint."""

    @property
    def outcome(self) -> str:
        """The outcome in words, as in the exit line and in status.json."""
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
"""Exit code of a worker whose main script calls `sfactory.train` without a guard; never one of a command."""


class CommandError(ValueError):
    """A command that cannot run, or a call from Python with the same mistake: exit code and one sentence."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.exit_code, self.sentence = code, sentence

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.exit_code, self.sentence)  # errors come from other processes too


LONGEST_LINE = 800  # characters of an exception that are reported


class SettingError(ValueError):
    """A setting that cannot be used; the message is one line for users."""

    exit_code = Exit.USAGE


class SettingNote(UserWarning):
    """A setting under an old name, or a recorded value that is replaced; printed as `sfactory: note: ...`."""


class EnvError(ValueError):
    """An environment that is unknown, or cannot be built; the message is one line.

    fault: the environment exists and failed by itself (exit 6); otherwise the request was wrong (exit 2).
    """

    def __init__(self, message: str, fault: bool = False) -> None:
        super().__init__(message)
        self.fault = fault

    @property
    def exit_code(self) -> Exit:
        return Exit.ENVIRONMENT if self.fault else Exit.USAGE


class NoPictures(EnvError):
    """An environment that draws no pictures, so that nothing can be filmed; it can train."""


class UnknownEnvError(EnvError):
    """An id that is not registered in this process; it may be in another one."""


class OnlyRegisteredHere(EnvError):
    """An id that the process which asks has registered with gymnasium, and new processes do not know."""

    def __init__(self, message: str, task: str) -> None:
        super().__init__(message)
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.task)


class FileRefused(ValueError):
    """A file of a run folder that is not opened: a link, a pipe, a folder, or too large; the message names it."""

    exit_code = Exit.USAGE


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and the reason."""

    exit_code = Exit.NO_USABLE_CHECKPOINT


class NoCheckpointError(CheckpointError):
    """A run or folder without a checkpoint."""

    exit_code = Exit.USAGE


class RunBusy(RuntimeError):
    """A run folder that another process trains in."""

    exit_code = Exit.BUSY


class RunFailed(RuntimeError):
    """A run that Python code started or resumed, and that failed (`sfactory.train`, `sfactory.resume`).

    outcome: how it ended (`sfactory.run.outcome.Outcome`). sentence: why, in one sentence. log: path of its log.txt.
    The exception of a callback that ended the run is the cause (`__cause__`).
    """

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.sentence: str = outcome.sentence
        self.log = str(Path(outcome.run_dir) / "log.txt")
        super().__init__(f"{outcome.name} (exit {outcome.code}): {self.sentence}; see {self.log}")

    @property
    def exit_code(self) -> Exit:
        """Exit code of the same run as a command."""
        return Exit(self.outcome.code)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.outcome,)  # errors come from other processes too


class LearnerLost(RuntimeError):
    """Another learner of the job is gone, or shows no sign of life (exit 8)."""

    def __init__(self, sentence: str, exit_code: Exit = Exit.WORKER_LOST) -> None:
        super().__init__(sentence)
        self.sentence, self.exit_code = sentence, exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.sentence, self.exit_code)


class LearnersDiffer(RuntimeError):
    """Two learners of a job have different weights; a bug, or machines of different kinds."""

    exit_code = Exit.BUG


def resume_command(run_dir: Path, settings: Mapping[str, float] | None = None) -> str:
    """The command that continues a run. settings: dotted name -> number, of those that it changes."""
    changes = "".join(f" --{name.replace('_', '-')} {value:.15g}" for name, value in (settings or {}).items())
    return f"sfactory resume {shlex.quote(str(run_dir))}{changes}"


def raised_by_sfactory(error: Exception) -> bool:
    """Whether the innermost frame is in this package: its ValueErrors are user errors, those of a library are bugs."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)


def one_line(error: BaseException) -> str:
    """Format an exception as `ValueError: message` on one line; the middle of a long one is left out."""
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()), LONGEST_LINE)


def shortened(text: str, size: int) -> str:
    """Leave out the middle of a text of more than `size` characters: an exception may hold a whole observation."""
    left_out = len(text) - size
    return text if left_out <= 0 else f"{text[: size // 2]} ... ({left_out:,} characters) ... {text[-size // 2 :]}"


def own_place(error: BaseException | None) -> str:
    """` (file, line N)` of the innermost frame in the user's own code, which is no installed package; else empty."""
    import sysconfig  # 5 ms that only errors cost

    frame, place = error.__traceback__ if error else None, ""
    while frame is not None:
        code, module = frame.tb_frame.f_code, str(frame.tb_frame.f_globals.get("__name__", ""))
        installed = "-packages/" in code.co_filename or code.co_filename.startswith(sysconfig.get_path("stdlib"))
        ours = module.partition(".")[0] in ("sfactory", "sfactory_envs")
        if not (installed or ours) and Path(code.co_filename).is_file():
            place = f" ({code.co_filename}, line {frame.tb_lineno})"
        frame = frame.tb_next
    return place


PART_OF_SECTION = 0.61
"""Similarity of the last parts of two names from which whole names can be near each other."""


def did_you_mean(word: str, known: Iterable[str], whole_near: float = 0.6, part_near: float = 0.75) -> str:
    """`; did you mean X?` with the nearest of `known`, or an empty string where nothing is near.

    Upper and lower case are the same. Of a dotted name the last part is enough: lr -> optim.lr.
    whole_near, part_near: similarity, as difflib measures it, from which a whole name or a last part is near.
    """
    import difflib

    whole: dict[str, str] = {}
    last_part: dict[str, str] = {}
    for name in known:
        whole.setdefault(name.lower(), name)
        last_part.setdefault(name.lower().rpartition(".")[2], name)
    last = word.lower().rpartition(".")[2]
    hits = difflib.get_close_matches(word.lower(), whole, 5, whole_near)
    if "." in word:  # names of one long section are near each other whatever their last parts are
        parts = {hit: hit.rpartition(".")[2] for hit in hits}
        hits = [hit for hit in hits if difflib.SequenceMatcher(None, last, parts[hit]).ratio() >= PART_OF_SECTION]
    near = [whole[hit] for hit in hits[:1]]
    if not near:
        near = [last_part[hit] for hit in difflib.get_close_matches(last, last_part, 1, part_near)]
    return f"; did you mean {near[0]}?" if near else ""


def suggest(word: str, known: Iterable[str], most: int = 12) -> str:
    """The end of an error message: `; did you mean a?`, or else the names that exist."""
    names = sorted(known)
    if not names:
        return ""
    listed = f"; there are {', '.join(names[:most])}{', ...' if len(names) > most else ''}"
    return did_you_mean(word, names) or listed
