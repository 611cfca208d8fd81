"""One running worker process as the supervisor sees it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess


def open_pidfd(pid: int) -> int:
    """A descriptor that becomes readable when the process exits; -1 where the system has none."""
    return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1


@dataclass
class WorkerProcess:
    """One generation of a worker."""

    name: str
    process: BaseProcess
    generation: int
    reaped: threading.Event = field(default_factory=threading.Event)
    """Set when the process is reaped: its telemetry reader ends with an empty queue."""
    heartbeat: int = -1
    """Newest heartbeat word."""
    heartbeat_at: float = 0.0
    """When it changed, on the supervisor's clock."""

    def __post_init__(self) -> None:
        self.pidfd = open_pidfd(self.pid)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; the negative signal number if a signal killed it."""
        return self.process.exitcode

    def join(self, seconds: float) -> None:
        """Collect the exit status and close the descriptor. RuntimeError if the process does not exit in time."""
        self.reaped.set()
        self.process.join(seconds)
        if self.pidfd >= 0:
            os.close(self.pidfd)
        if self.exit_code is None:
            raise RuntimeError(f"{self.name} (pid {self.pid}) could not be reaped within {seconds:g} s")
