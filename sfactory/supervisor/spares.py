"""Spare inference workers: processes that have loaded their packages and wait to take over.

An inference worker needs a second and more to start, most of it for importing torch. If it is killed again and again
(another user's script, an operating system short of memory), its restarts may never come to an end. After the second
kill within KEEP_S a second process is therefore started beside it, until there was no kill for KEEP_S. A spare has no
other memory than its packages, and is the first to be killed where memory runs out.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Mapping

from sfactory.supervisor.worker_process import WorkerProcess

KEEP_S = 60.0


class Spares:
    """The spare processes of a run, at most one per worker. Times are seconds on the supervisor's clock."""

    def __init__(self, start: Callable[[str], WorkerProcess], reap: Callable[[WorkerProcess], None]) -> None:
        """start: start a process that waits. reap: kill it and collect its exit."""
        self._start, self._reap = start, reap
        self.processes: dict[str, WorkerProcess] = {}
        self._killed_at: dict[str, float] = {}
        self._wanted: set[str] = set()

    def on_kill(self, name: str, now: float) -> None:
        """Note that a worker, or its spare, was killed from outside."""
        if now - self._killed_at.get(name, -KEEP_S) < KEEP_S:
            self._wanted.add(name)
        self._killed_at[name] = now

    def take(self, name: str) -> WorkerProcess | None:
        """The spare of a worker, which the caller puts in charge; None if there is none that runs."""
        spare = self.processes.pop(name, None)
        if spare is not None and spare.exit_code is not None:
            self._reap(spare)
            return None
        return spare

    def check(self, active: Mapping[str, WorkerProcess], now: float) -> None:
        """Replace spares that have exited, start those that are wanted, and end those that are not any more."""
        for name, spare in list(self.processes.items()):
            if (code := spare.exit_code) is not None:
                del self.processes[name]
                self._reap(spare)
                if code == -signal.SIGKILL:
                    self.on_kill(name, now)
                else:  # it failed by itself: the next one would, too
                    self._wanted.discard(name)
        for name in [name for name in self._wanted if now - self._killed_at[name] >= KEEP_S]:
            self._wanted.discard(name)
            if name in self.processes:
                self._reap(self.processes.pop(name))
        for name in self._wanted:
            if name in active and name not in self.processes:
                self.processes[name] = self._start(name)

    def close(self) -> None:
        """End all spares, also if one of them cannot be killed."""
        with contextlib.ExitStack() as owned:
            for name in list(self.processes):
                owned.callback(self._reap, self.processes.pop(name))
