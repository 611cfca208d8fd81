"""One running worker process as the supervisor sees it."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from sfactory.supervisor import reaper
from sfactory.supervisor.output_file import OutputFile

KILL_S = 1.0  # for the reaper to end a worker and its children, after GIVE_UP_S at most


def open_pidfd(pid: int) -> int:
    """A descriptor that becomes readable when the process exits; -1 where the system has none."""
    return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1


def left_behind(name: str, pids: Sequence[int]) -> str:
    """A line of the log about processes of a worker that are still there after SIGKILL."""
    which = f"process {pids[0]} does" if len(pids) == 1 else f"processes {', '.join(map(str, pids))} do"
    return f"{name}: {which} not end after SIGKILL, so something inside the system does not answer; left as it is"


@dataclass
class WorkerProcess:
    """One generation of a worker: the process of `reaper.py` that runs it."""

    name: str
    process: BaseProcess
    generation: int
    output: OutputFile
    reaped: threading.Event = field(default_factory=threading.Event)
    """Set when the process is reaped: its telemetry reader ends with an empty queue."""
    heartbeat: tuple[int, int] = (-1, -1)
    """Newest heartbeat word, and the environment that a sampler steps or builds."""
    heartbeat_at: float = 0.0
    """When it changed, on the supervisor's clock."""
    started_at: float = 0.0
    """When it was started, on the supervisor's clock."""
    beats: bool = False
    """Whether it has had a heartbeat of its own; before, it loads packages."""
    began_at: float = 0.0
    """When it had its first heartbeat, on the supervisor's clock."""
    slots_before: int = 0
    """Slots that were filled with its help when it started."""
    ready: bool = False
    """Whether it has begun to work: its packages are loaded and its environments built."""
    exceeded: str = ""
    """The time limit for which the supervisor killed it."""
    hung_s: float = 0.0
    """Seconds without a sign of life after which it was killed for that limit."""

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

    def kill(self) -> None:
        """Have the worker and everything it started killed; it exits soon after."""
        if self.exit_code is None:
            reaper.kill([self.pid], reaper.STOP)
            reaper.kill([self.pid], signal.SIGCONT)  # it may have been stopped

    def request_stack_dump(self) -> None:
        """Have the worker write the stacks of its threads into its output, also while it holds the interpreter lock."""
        if self.exit_code is None:
            reaper.kill([self.pid], reaper.STACKS)

    def join(self) -> int:
        """Kill the worker, wait for it and close the descriptor; return its exit code.

        RuntimeError if it does not exit in time.
        """
        self.reaped.set()
        self.kill()
        if not self._exits_within(reaper.GIVE_UP_S + KILL_S):
            reaper.kill([self.pid], signal.SIGKILL)
            self._exits_within(KILL_S)
        if self.pidfd >= 0:
            os.close(self.pidfd)
        code = self.exit_code
        if code is None:
            raise RuntimeError(f"{self.name} (pid {self.pid}) cannot be killed")
        return code

    def _exits_within(self, seconds: float) -> bool:
        deadline, poll = time.monotonic() + seconds, select.poll()
        if self.pidfd >= 0:
            poll.register(self.pidfd, select.POLLIN)
        while self.exit_code is None and (left := deadline - time.monotonic()) > 0:
            poll.poll(1000.0 * (left if self.pidfd >= 0 else min(left, 0.01)))
        return self.exit_code is not None
