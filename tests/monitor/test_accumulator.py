"""Accumulator: values of one row are combined as the table of metrics says."""

import pytest

from sfactory.monitor import table
from sfactory.monitor.accumulator import Accumulator
from sfactory.monitor.board import Board
from sfactory.monitor.table import Metric


@pytest.fixture
def example_metrics(monkeypatch):
    for combine in ("mean", "sum", "max", "last"):
        monkeypatch.setitem(table.METRICS, f"queue/{combine}", Metric("an example", "sampler", combine))


@pytest.mark.parametrize(("combine", "value"), [("mean", 3.0), ("sum", 12.0), ("max", 7.0), ("last", 1.0)])
def test_accumulator_combines_values_as_the_table_says(example_metrics, combine, value):
    accumulator = Accumulator()
    for x in (4.0, 7.0, 0.0, 1.0):
        accumulator.add(f"queue/{combine}", x)
    assert accumulator.drain_row() == {f"queue/{combine}": value}
    assert accumulator.drain_row() == {}


def test_accumulator_mean_over_workers_is_weighted_by_their_counts(example_metrics):
    board = Board()
    for worker, values in (("sampler-0", [1.0] * 3), ("sampler-1", [5.0])):
        accumulator = Accumulator()
        for x in values:
            accumulator.add("queue/mean", x)
        board.handle(("metrics", worker, accumulator.drain()))
    assert board.snapshot(1, 1, 1, 1.0)["queue/mean"] == 2.0
    assert "queue/mean" not in board.snapshot(2, 2, 2, 2.0)


def test_accumulator_maximum_of_negative_values_is_negative(example_metrics):
    accumulator = Accumulator()
    accumulator.add("queue/max", -3.0)
    accumulator.add("queue/max", -5.0)
    assert accumulator.drain_row() == {"queue/max": -3.0}


def test_accumulator_rejects_a_name_that_is_not_in_the_table():
    with pytest.raises(KeyError):
        Accumulator().add("queue/unknown", 1.0)


def test_board_rejects_a_metric_from_another_kind_of_worker(example_metrics):
    with pytest.raises(KeyError, match="is of the sampler; learner sent it"):
        Board().handle(("metrics", "learner", {"queue/sum": (1.0, 1.0)}))
