"""Run commands side by side through a launcher, until none is left; signals are forwarded to them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

from sfactory.errors import Exit
from sfactory.population.commands import Handle
from sfactory.supervisor.output_file import OutputFile
from sfactory.supervisor.process_signals import exits_are_reported, signal_handlers

STOPPED = {Exit.INTERRUPTED, Exit.TERMINATED, Exit.REQUEUE}
"""Exit codes of runs that were stopped by a signal, with a checkpoint."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.1

Job = TypeVar("Job")


@dataclass
class Running(Generic[Job]):
    """A job whose command was submitted."""

    job: Job
    handle: Handle
    started_at: float
    output: OutputFile
    """In lockstep also what environments print."""

    @property
    def seconds(self) -> float:
        """Time since it was submitted."""
        return time.monotonic() - self.started_at

    def last_line(self) -> str:
        """The last line that the command printed: how it ended."""
        return self.output.last_line().removeprefix("sfactory: ")[:300]


class SideBySide(Generic[Job]):
    """Keeps at most `max_running` jobs running.

    Consumes: the queue, exit codes, signals. Produces: commands, calls of `record`. Waits for: its commands, polled
    every POLL_S seconds, and signals.
    """

    def __init__(
        self,
        max_running: int,
        start: Callable[[Job], Running[Job]],
        record: Callable[[Running[Job], int], None],
        ready: Callable[[Job], bool] = lambda job: True,
    ) -> None:
        """start: submits a job. record: called with its exit code when it has ended; may extend the queue.

        ready: whether a job can start now; those that cannot are asked again.
        """
        self.max_running, self._start, self._record, self._ready = max_running, start, record, ready
        self.queue: list[Job] = []
        self.running: list[Running[Job]] = []
        self.signal, self.num_signals = 0, 0

    def run(self) -> None:
        """Until nothing runs, and nothing waits or a signal has come. The first signal is forwarded, others kill."""
        forwarded = 0
        with signal_handlers(STOP_SIGNALS, self._note_signal), exits_are_reported():
            while self.running or (self.queue and not self.num_signals):
                self._fill()
                if self.num_signals > forwarded:
                    forwarded = self.num_signals
                    self._forward(self.signal if self.num_signals == 1 else signal.SIGKILL)
                for one in self.running:
                    one.output.trim()
                for one, code in [(one, one.handle.poll()) for one in self.running]:
                    if code is not None:
                        self.running.remove(one)
                        self._record(one, code)
                time.sleep(POLL_S)

    @property
    def stop_code(self) -> Exit:
        """Exit code of the command after a signal."""
        return Exit.INTERRUPTED if self.signal == signal.SIGINT else Exit.TERMINATED

    def _fill(self) -> None:
        for job in list(self.queue):
            if len(self.running) >= self.max_running or self.num_signals:
                return
            if self._ready(job):
                self.queue.remove(job)
                self.running.append(self._start(job))

    def _forward(self, number: int) -> None:
        """Forward the first signal, on which runs save and exit; from the second on, kill them."""
        log(f"{'killing' if number == signal.SIGKILL else 'saving and stopping'} {len(self.running)} runs")
        for one in self.running:
            one.handle.cancel(number)

    def _note_signal(self, number: int, _: FrameType | None) -> None:
        self.signal, self.num_signals = self.signal or number, self.num_signals + 1


class LostJobs:
    """Jobs whose process was lost, and how often in a row without getting any further."""

    def __init__(self, most: int) -> None:
        """most: times in a row that a job is started again."""
        self.most = most
        self._lost: dict[Hashable, tuple[int, int]] = {}  # job -> times in a row, and the steps it had reached then

    def __contains__(self, job: Hashable) -> bool:
        return job in self._lost

    def starts_again(self, job: Hashable, code: int, steps: int) -> bool:
        """Count a loss, and return whether the job is started again. code: its exit code; steps: those it has reached.

        Each stop by a scheduler is the first loss: a time limit says nothing against the job.
        """
        times, before = self._lost.get(job, (0, -1))
        times = 1 if steps > before or code == Exit.REQUEUE else times + 1
        self._lost[job] = times, steps
        return times <= self.most


def log(line: str) -> None:
    """Print one line on stderr."""
    print(line, file=sys.stderr, flush=True)
