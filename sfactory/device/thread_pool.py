"""Run numbered tasks on a few threads of this process, with results in order.

OpenMP threads share every single operation and wait for each other after each one: on a core that other workers need
too, the slower half delays the faster one (benchmarks/LOG.md). Here a task runs from start to end on one thread, and a
free thread takes the next task, so an interrupted thread completes fewer tasks and the wait is at most one task long.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from sfactory.device.machine import cores

T = TypeVar("T")
AUTO = 4


def pool_size(threads: int) -> int:
    """Number of threads for `run.learner_threads`; 0 means one per core, up to AUTO."""
    return threads or min(cores(), AUTO)


class ThreadPool:
    """A few threads of one process; with `threads` 1 the caller runs every task."""

    def __init__(self, threads: int) -> None:
        self.size = threads
        self.inboxes: list[queue.SimpleQueue[_Job[Any] | None]] = [queue.SimpleQueue() for _ in range(threads - 1)]
        for inbox in self.inboxes:
            threading.Thread(target=_serve, args=(inbox,), daemon=True).start()

    def map(self, task: Callable[[int], T], count: int) -> list[T]:
        """Run task(0) ... task(count - 1) on all threads; results in order. Raises the first exception of a task."""
        job = _Job(task, count)
        for inbox in self.inboxes[: count - 1]:
            inbox.put(job)
        job.work()
        return job.results()

    def close(self) -> None:
        """Stop the threads."""
        for inbox in self.inboxes:
            inbox.put(None)


class _Job(list[T]):
    """Tasks that threads take one by one; the list holds their results."""

    def __init__(self, task: Callable[[int], T], count: int) -> None:
        super().__init__([None] * count)  # type: ignore[list-item]
        self.task, self.next = task, itertools.count().__next__  # one call of C: two threads never get the same number
        self.done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work(self) -> None:
        while (number := self.next()) < len(self):
            try:
                self[number] = self.task(number)
            except BaseException as error:
                self.done.put(error)
            else:
                self.done.put(None)

    def results(self) -> list[T]:
        errors = [self.done.get() for _ in range(len(self))]
        for error in errors:
            if error is not None:
                raise error
        return self


def _serve(inbox: queue.SimpleQueue[_Job[Any] | None]) -> None:
    torch.set_num_threads(1)  # of this thread: the tasks are what runs in parallel
    while (job := inbox.get()) is not None:
        job.work()
        del job
