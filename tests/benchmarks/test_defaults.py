"""The comparison of candidates for the defaults: what is run, and how it is judged."""

import numpy as np
import pytest
from defaults import CANDIDATES, DEFAULT, TASKS, Pair, cells, finals, row, verdict
from grid import Run
from scores import BLOCKS, Curve


def test_every_candidate_is_accepted_and_differs_from_the_preset_in_some_task():
    found = {key: repr(Run(cell, 0, None).config()) for key, cell in cells().items()}
    assert {name for _, name in found} == set(CANDIDATES)
    for target in TASKS:
        of_task = [text for (task, _), text in found.items() if task == target]
        assert len(set(of_task)) == len(of_task), target


def test_candidate_that_a_preset_has_already_is_not_run():
    found = cells()
    assert ("classic/cartpole", "decay") not in found
    assert ("mujoco/hopper", "decay") in found
    assert all((target, DEFAULT) in found for target in TASKS)


def curve(last, seconds=100.0):
    return Curve(np.linspace(0.0, last, BLOCKS), {}, seconds)


def test_slow_candidate_is_read_where_the_preset_was_over():
    pair = Pair([curve(10.0, 200.0)] * 3, [curve(6.0)] * 3)
    own, preset = finals(pair, equal_time=False)
    assert own.mean() > preset.mean()
    own, preset = finals(pair, equal_time=True)
    assert own.mean() < preset.mean()
    assert own.mean() == pytest.approx(np.linspace(0, 10, BLOCKS)[8:10].mean())
    assert curve(10.0, 50.0).at_seconds(100.0) == curve(10.0).final


def test_verdict_needs_the_whole_interval_on_one_side_of_one_half():
    assert [verdict(*pair) for pair in ((0.6, 1), (0, 0.4), (0.4, 0.6), (0.5, 1))] == [
        "better", "worse", "not distinguishable", "not distinguishable"
    ]  # fmt: skip


def test_row_marks_tasks_by_their_own_interval_and_judges_the_suite():
    first, second = list(TASKS)[:2]
    up = Pair([curve(x) for x in (10, 11, 12)], [curve(x) for x in (1, 2, 3)])
    down = Pair([curve(x) for x in (1, 2, 3)], [curve(x) for x in (10, 11, 12)])
    line = row("ewma", {first: up, second: up}, equal_time=False)
    assert line.startswith("| EWMA | 10.71 / 1.947 + | 10.71 / 1.947 + |  |")
    assert "| 1.00 (1.00 to 1.00) | better | 1.00 |" in line
    assert "0.50 (0.50 to 0.50) | not distinguishable" in row("ewma", {first: up, second: down}, equal_time=False)


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_not_judged(seeds):
    pair = Pair([curve(10)] * seeds, [curve(1)] * seeds)
    line = row("ewma", {next(iter(TASKS)): pair}, equal_time=False)
    assert "| 9.737 / 0.9737 |  |" in line
    assert f"| 1.00 | too few seeds: {seeds} |" in line
