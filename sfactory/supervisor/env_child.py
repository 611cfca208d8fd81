"""What a process does that was started for a job with environments (`env_task.py`). Few imports: commands wait.

The process tells its parent, in one shared word, when it calls an environment and how many the call covers. The parent
limits the time of each call, and needs no answer of a process that hangs.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from sfactory import errors
from sfactory.envs import EnvError
from sfactory.errors import CommandError, Exit, SettingError, one_line, own_place, raised_by_sfactory
from sfactory.shm import atomics
from sfactory.shm.arena import Arena, Field
from sfactory.supervisor.child_main import flush_output

CLOCK = {"clock": Field((1,), "int64")}
"""Layout of the memory that the process shares with its parent: one word, see `ClockWord`."""


class Doing(IntEnum):
    """What the process is doing."""

    START = 0
    """It loads packages, and the script of its parent."""
    OWN = 1
    """Code of sfactory."""
    BUILD = 2
    """Building, resetting or closing environments, each for at most `env.build_timeout`."""
    STEP = 3
    """Stepping environments, each for at most `env.step_timeout`."""


class ClockWord(NamedTuple):
    """The shared word: it changes with every call of an environment."""

    calls: int
    environments: int
    """That the call covers."""
    doing: Doing

    @classmethod
    def read(cls, words: np.ndarray) -> ClockWord:
        word = int(words[0])
        return cls(word >> 24, (word >> 4) & 0xFFFFF, Doing(word & 0xF))

    def write(self, words: np.ndarray) -> None:
        atomics.store(words, 0, self.calls << 24 | min(self.environments, 0xFFFFF) << 4 | self.doing)


class ChildClock:
    """Tells the parent what this process is doing (a `sfactory.play.watched_group.EnvClock`)."""

    def __init__(self, words: np.ndarray) -> None:
        self._words, self._calls = words, 0

    def own(self) -> None:
        """No environment is called."""
        self._tell(1, Doing.OWN)

    def build(self, environments: int) -> None:
        """So many environments are built, reset or closed."""
        self._tell(environments, Doing.BUILD)

    def step(self, environments: int) -> None:
        """So many environments are stepped."""
        self._tell(environments, Doing.STEP)

    @property
    def doing(self) -> Doing:
        return ClockWord.read(self._words).doing

    def _tell(self, environments: int, doing: Doing) -> None:
        self._calls += 1
        ClockWord(self._calls, environments, doing).write(self._words)


class Job(Protocol):
    """What is done with environments. Both a job and its result are pickled."""

    def run(self, clock: ChildClock) -> Any:
        """Return the result. Tells the clock before each call of an environment."""


@dataclass(frozen=True)
class EnvChild:
    """Task of the process: run the job, and send its result or the error that it raised."""

    job: Job
    what: str
    """The environments, for messages."""
    results: Connection

    def run(self, name: str, fds: tuple[int, ...]) -> int:
        """See `child_main.Task`."""
        process, clock = os.getpid(), ChildClock(Arena(CLOCK, fds[0])["clock"])
        clock.own()
        try:
            result = self.job.run(clock)
        except BaseException as error:
            result = portable(error, self.what, clock.doing)
        clock.own()
        if os.getpid() != process:  # an environment has forked, and the copy came back here
            os._exit(0)
        flush_output()  # first: this process is ended as soon as the result has arrived
        self.results.send(result)
        return 0


def portable(error: BaseException, what: str, doing: Doing) -> Exception:
    """The error as one that another process can unpickle without modules of the user's own.

    The traceback of an error that is a bug is printed here, where it was raised.
    """
    if not isinstance(error, Exception):  # SystemExit and KeyboardInterrupt; signals do not reach this process
        return EnvError(f"{what} {FAILED[doing]}: {one_line(error)}", fault=True)
    if isinstance(error, EnvError) and error.fault:
        return EnvError(f"{error}{own_place(error.__cause__)}", fault=True)
    if type(error).__module__ == errors.__name__:
        return error
    code = getattr(error, "exit_code", None)
    if isinstance(code, Exit):
        return CommandError(code, str(error))
    if type(error) in (MemoryError, OSError):
        return error
    if isinstance(error, ValueError) and raised_by_sfactory(error):
        return SettingError(str(error))
    with contextlib.suppress(Exception):  # an environment may have closed stderr
        traceback.print_exception(error)
    return RuntimeError(one_line(error))


FAILED = {
    Doing.START: "could not be loaded",
    Doing.OWN: "failed outside of a step",
    Doing.BUILD: "could not be built",
    Doing.STEP: "failed in a step",
}
"""What went wrong, for messages."""
