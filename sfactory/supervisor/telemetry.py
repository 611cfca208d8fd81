"""Telemetry as the supervisor hears it: what workers tell, and nothing that anybody waits for."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from sfactory.monitor.messages import Message

QUEUE_BYTES = 1 << 20


class Telemetry:
    """One daemon thread per generation that only appends to a list, and ends when its worker is buried and the queue
    is empty. If the queue wedges (its worker died holding its lock), statistics of a dead worker are lost and nothing
    else: no thread is ever joined."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self._read_from: dict[int, Any] = {}  # queues with a reader

    def listen(self, over: threading.Event) -> Any:
        """A new queue with its own reader, until `over` is set."""
        from faster_fifo import Queue

        queue = Queue(max_size_bytes=QUEUE_BYTES)
        self._read_from[id(queue)] = queue
        threading.Thread(target=self._read, args=(queue, over), daemon=True).start()
        return queue

    def _read(self, queue: Any, over: threading.Event) -> None:
        from queue import Empty

        try:
            while True:
                try:
                    self.messages.extend(queue.get_many(timeout=1.0))
                except Empty:
                    if over.is_set():
                        return
                except Exception:
                    return
        finally:
            self._read_from.pop(id(queue), None)

    def settle(self, seconds: float = 2.0) -> None:
        """Wait until the readers have read everything that was put, for a bounded time: nobody may put any more."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(queue.empty() for queue in list(self._read_from.values())):
            time.sleep(0.01)
        time.sleep(0.05)  # what was read is appended next

    def drain(self) -> list[Message]:
        return [self.messages.popleft() for _ in range(len(self.messages))]
