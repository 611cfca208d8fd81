"""Base class of the workers: the loop, the heartbeat, stage timers, and telemetry that never blocks."""

from __future__ import annotations

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sfactory.monitor.accumulator import Accumulator
from sfactory.monitor.messages import LOG, METRICS, STAGES, Message
from sfactory.monitor.table import worker_kind
from sfactory.shm import atomics
from sfactory.shm.doorbell import Doorbell
from sfactory.workers.shared import Phase, SharedState, StopOrder, heartbeat_word

STAGES_EVERY_S = 1.0


class TelemetrySink(Protocol):
    """Destination of telemetry: a queue to the supervisor, or a list in lockstep."""

    def put(self, message: Message) -> None: ...


class ListSink:
    """Telemetry of workers that run in this process: in step order, nothing dropped."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def put(self, message: Message) -> None:
        self.messages.append(message)

    def drain(self) -> list[Message]:
        """Return and forget all messages."""
        messages, self.messages = self.messages, []
        return messages


class QueueSink:
    """Telemetry through a faster-fifo queue. If it is full or broken, the message is dropped and counted."""

    def __init__(self, queue: Any) -> None:
        self.queue, self.dropped = queue, 0

    def put(self, message: Message) -> None:
        try:
            self.queue.put(message, block=False)
        except Exception:  # a failure of telemetry must not stop the worker
            self.dropped += 1


class Stages:
    """Time spent per stage: each `mark` adds the time since the previous mark to the named stage."""

    def __init__(self, file: Path | None = None) -> None:
        """file: if given, every mark is appended to it at each `drain` (`run.profile`)."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = self._start = time.monotonic()
        self._file, self._marks = file, []  # type: tuple[Path | None, list[tuple[str, float]]]

    def mark(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] += now - self._last
        self._last = now
        if self._file is not None:
            self._marks.append((stage, now))

    def drain(self) -> dict[str, float]:
        """Return the seconds per stage and start again at zero."""
        seconds = dict(self.seconds)
        self.seconds.clear()
        if self._file is not None and self._marks:
            with contextlib.suppress(OSError), self._file.open("a") as file:
                file.write(json.dumps([self._start, self._marks]) + "\n")
            self._start, self._marks = self._last, []
        return seconds


class Worker(ABC):
    """Base of sampler, inference worker and learner. A subclass has `step()`; `run()` only waits and calls it."""

    def __init__(self, name: str, shared: SharedState, sink: TelemetrySink) -> None:
        self.name, self.shared, self.sink = name, shared, sink
        self.run_spec, self.config, self.slot_table = shared.run_spec, shared.run_spec.config, shared.slot_table
        self.bell: Doorbell = shared.bells[name]
        self.stages = Stages(self.run_spec.debug_dir / f"{name}.stages" if self.config.run.profile else None)
        self._row = shared.run_spec.workers.index(name)
        self._heartbeats = 0
        self.turns = 0  # steps that did work, since the last message; lockstep does not count them
        self._waited = 0.0  # seconds since the last turn that was sent
        self._recorded = Accumulator()
        self._next_report = time.monotonic() + STAGES_EVERY_S

    @abstractmethod
    def step(self) -> bool:
        """Do all available work; return whether there was any. Never waits."""

    def finished(self) -> bool:
        """Whether this worker has a reason of its own to exit, besides the supervisor's stop order."""
        return False

    def run(self) -> None:
        """Wait and work until the stop order. Drains the doorbell before it steps, so that no ring is lost.

        Does not work while the supervisor is stopped.
        """
        while self.shared.supervisor.stop == StopOrder.RUN and not self.finished():
            self.heartbeat(Phase.WORK)
            if not self.shared.supervisor.silent and self.step():
                self.turns += 1
            else:
                self.heartbeat(Phase.IDLE)
                self.bell.wait()
                self.stages.mark("wait")
            self.bell.drain()
            self.report()

    def heartbeat(self, phase: Phase) -> None:
        """Publish that this worker runs, and its phase."""
        self._heartbeats += 1
        atomics.store(self.shared.heartbeat, self._row, heartbeat_word(self._heartbeats, phase))

    def report(self, now: Callable[[], float] = time.monotonic) -> None:
        """Send stage times once a second."""
        if now() >= self._next_report:
            self._next_report = now() + STAGES_EVERY_S
            self.flush()

    def log(self, line: str) -> None:
        """Send a line for the log of the run."""
        self.sink.put((LOG, self.name, line))

    def record(self, name: str, value: float, count: float = 1.0) -> None:
        """Add a value of a metric to the next message; the table of metrics says how values are combined."""
        self._recorded.add(name, value, count)

    def flush(self) -> None:
        """Send stage times and recorded metrics."""
        seconds = self.stages.drain()
        self._waited += seconds.get("wait", 0.0)
        if self.turns:  # a wait that is longer than the interval of messages belongs to the turn that ends it
            self.record(f"queue/{worker_kind(self.name)}_wait_ms", 1000.0 * self._waited, self.turns)
            self.turns, self._waited = 0, 0.0
        self.sink.put((STAGES, self.name, seconds))
        if recorded := self._recorded.drain():
            self.sink.put((METRICS, self.name, recorded))

    def close(self) -> None:  # noqa: B027  # optional: most workers own only memory
        """Release what the worker owns besides memory."""
