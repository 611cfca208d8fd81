"""Time without that in which the process itself was stopped."""

from types import SimpleNamespace

from sfactory.supervisor import ticks
from sfactory.supervisor.ticks import LONGEST_TICK_S, Ticks


def test_ticks_count_a_stop_of_this_process_as_one_tick(monkeypatch):
    times = iter((100.0, 100.0, 100.25, 500.25, 500.75))
    monkeypatch.setattr(ticks, "time", SimpleNamespace(monotonic=lambda: next(times)))
    found = Ticks()
    assert [found.passed() for _ in range(4)] == [0.0, 0.25, LONGEST_TICK_S, 0.5]
