"""The thread pool: order of results, exceptions, number of threads."""

import threading
import time

import pytest

from sfactory.device.thread_pool import ThreadPool, pool_size


def test_parts_are_taken_by_whoever_is_free_and_results_are_in_order():
    seen = {}

    def task(part):
        seen[part] = threading.get_ident()
        time.sleep(0.05 if part == 0 else 0.001)
        return part * part

    assert list(ThreadPool(3).map(task, 12)) == [part * part for part in range(12)]
    assert len(set(seen.values())) > 1
    assert sum(ident == seen[0] for ident in seen.values()) < 6  # the slow one did few


def test_an_exception_of_any_part_is_the_callers():
    def task(part):
        if part == 3:
            raise ValueError("part 3")
        return part

    pool = ThreadPool(2)
    with pytest.raises(ValueError, match="part 3"):
        pool.map(task, 5)
    assert list(pool.map(lambda part: part, 5)) == [0, 1, 2, 3, 4]  # and it works on


def test_helpers_leave_when_the_crew_is_closed():
    before = threading.active_count()
    pool = ThreadPool(3)
    assert threading.active_count() == before + 2
    pool.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_auto_is_a_thread_per_core_up_to_four(monkeypatch):
    for cores, want in ((1, 1), (2, 2), (3, 3), (64, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert pool_size(0) == want
    assert pool_size(7) == 7
