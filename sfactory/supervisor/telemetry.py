"""Collect the telemetry of worker processes; no process ever waits for it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from multiprocessing import heap
from typing import Any

from sfactory.monitor.messages import Message

QUEUE_BYTES = 1 << 20


class Telemetry:
    """One queue and one daemon thread per worker generation; the thread only appends to a list.

    A thread ends when its worker is reaped and its queue is empty. If a queue is stuck because its worker was killed
    while holding the queue's lock, only the remaining statistics of that worker are lost: threads are never joined.
    """

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self._open: dict[int, Any] = {}  # queues that a thread reads

    def listen(self, reaped: threading.Event) -> Any:
        """A new queue that is read until `reaped` is set and the queue is empty."""
        from faster_fifo import Queue

        _leave_out_read_only_folders()
        queue = Queue(max_size_bytes=QUEUE_BYTES)
        self._open[id(queue)] = queue
        threading.Thread(target=self._read, args=(queue, reaped), daemon=True).start()
        return queue

    def _read(self, queue: Any, reaped: threading.Event) -> None:
        from queue import Empty

        try:
            while True:
                try:
                    self.messages.extend(queue.get_many(timeout=1.0))
                except Empty:
                    if reaped.is_set():
                        return
                except Exception:
                    return
        finally:
            self._open.pop(id(queue), None)

    def wait_until_read(self, seconds: float = 2.0) -> None:
        """Wait until the threads have read all queues, at most `seconds`. No worker may write any more."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(queue.empty() for queue in list(self._open.values())):
            time.sleep(0.01)
        time.sleep(0.05)  # messages are appended a moment after the queue is empty

    def drain(self) -> list[Message]:
        """Return and forget the messages read so far."""
        return [self.messages.popleft() for _ in range(len(self.messages))]


def _leave_out_read_only_folders() -> None:
    """Let queues use temporary files where /dev/shm cannot be written: Python looks at its free space only."""
    candidates: list[str] = getattr(heap.Arena, "_dir_candidates", [])
    candidates[:] = [folder for folder in candidates if os.access(folder, os.W_OK | os.X_OK)]
