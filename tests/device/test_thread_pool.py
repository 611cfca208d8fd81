"""The thread pool: order of results, exceptions, number of threads."""

import threading
import time

import pytest

from sfactory.device.thread_pool import ThreadPool, pool_size


def test_thread_pool_runs_tasks_on_free_threads_and_returns_results_in_order():
    seen = {}

    def task(number):
        seen[number] = threading.get_ident()
        time.sleep(0.05 if number == 0 else 0.001)
        return number * number

    assert list(ThreadPool(3).map(task, 12)) == [number * number for number in range(12)]
    assert len(set(seen.values())) > 1
    assert sum(ident == seen[0] for ident in seen.values()) < 6  # the slow thread ran few


def test_thread_pool_raises_the_exception_of_a_task_and_remains_usable():
    def task(number):
        if number == 3:
            raise ValueError("task 3")
        return number

    pool = ThreadPool(2)
    with pytest.raises(ValueError, match="task 3"):
        pool.map(task, 5)
    assert list(pool.map(lambda number: number, 5)) == [0, 1, 2, 3, 4]


def test_threads_of_a_thread_pool_exit_when_it_is_closed():
    before = threading.active_count()
    pool = ThreadPool(3)
    assert threading.active_count() == before + 2
    pool.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_pool_size_is_one_thread_per_core_up_to_four_by_default(monkeypatch):
    for cores, want in ((1, 1), (2, 2), (3, 3), (64, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert pool_size(0) == want
    assert pool_size(7) == 7
