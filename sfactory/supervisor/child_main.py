"""First code of every worker process, below `reaper.py`: install signal handlers, then run the worker.

The reaper has requested the death signal and redirected the output already: workers never write to the terminal, and
the supervisor reads the last line of their file when they exit. Only the standard library is imported at the top.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import traceback
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any, Protocol

from sfactory.supervisor.reaper import STACKS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that only the supervisor acts on."""


class Task(Protocol):
    """What a child process does."""

    def run(self, name: str, fds: tuple[int, ...]) -> int:
        """Run until the end in a process with this name and these inherited descriptors; return the exit code."""


class SpawnMessage:
    """Arguments of a new process. The task, whose import is slow, is unpickled after the signal handlers are set."""

    def __init__(self, name: str, fds: tuple[int, ...], task: Task) -> None:
        self.name, self.fds, self.task = name, fds, task  # type: tuple[str, tuple[int, ...], Any]

    def __getstate__(self) -> tuple[Any, ...]:
        return self.name, [DupFd(fd) for fd in self.fds], bytes(ForkingPickler.dumps(self.task))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name, handles, self.task = state  # the task as bytes
        self.fds = tuple(handle.detach() for handle in handles)


def child_main(message: SpawnMessage) -> None:
    """Entry point of every child process."""
    for number in SIGNALS:  # empty handlers, not SIG_IGN: children of an environment can still be terminated
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, which is for those children too
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    faulthandler.enable()
    faulthandler.register(STACKS, all_threads=True)
    code = 1
    try:
        code = ForkingPickler.loads(message.task).run(message.name, message.fds)  # imports what this worker needs
    except BaseException:
        with contextlib.suppress(Exception):  # an environment may have closed stderr
            traceback.print_exc()
    flush_output()
    os._exit(code)  # skips atexit handlers, which may hang in an environment


def flush_output() -> None:
    """Write what Python and C code hold back for stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a full disk, or an environment closed it
            stream.flush()
    ctypes.CDLL(None).fflush(None)
