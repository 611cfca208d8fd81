"""Start a worker process; end it and everything it started when the supervisor is gone."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.process import BaseProcess

from sfactory.supervisor.child_main import SIGNALS, SpawnMessage, child_main
from sfactory.supervisor.reaped_process import ReapedProcess, reaper_command
from sfactory.supervisor.reaper import children_of, end_marked

STDERR = "-"
"""Output of a process that writes to this process's stderr."""


class OrphanKiller:
    """A process that outlives the supervisor and then ends what remains of its workers (`reaper.py orphans`)."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(8)  # the first part of the marks of this run
        self._others = set(children_of(os.getpid()))
        with _signals_blocked():
            self._process = subprocess.Popen(
                [*reaper_command(), "orphans", self.run],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # if it was killed, the death signal still ends the workers
            os.write(self._process.stdin.fileno(), line.encode())

    def mark(self, name: str, generation: int) -> str:
        """The mark of one generation of a worker."""
        return f"{self.run}/{name}/{generation}/"

    def watch(self, pid: int) -> None:
        """Add the process of a worker."""
        self._write(f"+ {pid}\n")

    def forget(self, pid: int, mark: str = "") -> list[int]:
        """Remove a process that was reaped.

        mark: its mark, if it may have left processes: they are killed. Returns those that cannot be killed.
        """
        self._write(f"- {pid}\n")
        return end_marked(mark) if mark else []

    def collect(self, workers: Iterable[int]) -> None:
        """Collect processes of killed workers that are children of this process now and have exited.

        They are where it is process 1, as in a container, or a subreaper. Others of its children are left alone: they
        existed before, or are in its process group.
        """
        orphans = set(children_of(os.getpid())) - self._others - {self._process.pid, *workers}
        for pid in orphans:
            with contextlib.suppress(OSError):
                if os.getpgid(pid) != os.getpgid(0):
                    os.waitpid(pid, os.WNOHANG)

    def close(self) -> None:
        """End the process; it ends the workers that are still listed."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spawn(message: SpawnMessage, mark: str, output: str, variables: Mapping[str, str] | None = None) -> BaseProcess:
    """Spawn a process below a reaper; `pid` and `exitcode` of the result are the reaper's (`reaped_process`).

    mark: see `OrphanKiller.mark`. output: file for stdout and stderr, or STDERR. variables: added to its environment.
    Signals are blocked meanwhile: the child inherits the mask, and the parent receives them afterwards.
    """
    words = [mark, output, *(f"{name}={value}" for name, value in (variables or {}).items())]
    process = ReapedProcess(words, target=child_main, args=(message,), name=message.name)
    with _signals_blocked():
        process.start()
    return process
