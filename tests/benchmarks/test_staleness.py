"""The settings that staleness.py compares, and its tables."""

import numpy as np
import pytest
from grid import Run, Score
from staleness import best, objective_tables, rate_tables
from staleness_cells import FACTORS, OBJECTIVES, RATES, TASKS, corrections, objectives, rates

from sfactory.algo.surrogates.registry import SURROGATES


def config(cell):
    return Run(cell, 0, None).config()


def test_every_objective_has_a_row_and_each_row_three_settings():
    assert {row.objective or name for name, row in OBJECTIVES.items()} == set(SURROGATES)
    for name, row in OBJECTIVES.items():
        assert len(set(row.values)) == 3, name


@pytest.mark.parametrize("task", ["cartpole", "breakout"])
def test_cells_of_objectives_are_accepted_and_differ_by_their_knob(task):
    cells = {key: cell for key, cell in objectives().items() if key[0] == task}
    assert {key[2] for key in cells} == set(TASKS[task].short_lags)
    lag = TASKS[task].short_lags[-1]
    for name, row in OBJECTIVES.items():
        found = [config(cells[task, name, lag, value]) for value in row.values]
        assert {c.surrogate.objective for c in found} == {row.objective or name}
        assert {c.batch.forced_lag for c in found} == {lag}
        assert len({repr(c) for c in found}) == 3, name


def test_all_lags_are_those_of_the_corrections():
    assert {key[2] for key in objectives(all_lags=True) if key[0] == "cartpole"} == {0, 1, 2, 4, 8, 16}


def test_names_of_cells_are_different_and_their_flags_are_accepted():
    cells = [*corrections().values(), *rates().values(), *objectives().values()]
    names = {cell.name: cell for cell in cells}
    assert len(names) == len(set(corrections().values())) + len(rates()) + len(objectives())
    for cell in [*corrections().values(), *rates().values()]:
        assert config(cell).stop.env_steps == cell.steps


def test_rates_differ_by_rule_and_factor_alone():
    found = {key: config(cell) for key, cell in rates().items()}
    for task in ("cartpole", "breakout"):
        for rule in RATES:
            assert [found[task, rule, f].optim.lr / TASKS[task].lr for f in FACTORS] == pytest.approx(FACTORS)
        assert found[task, "adam_rel", 1].optim.adam_rel
        assert {found[task, rule, 1].optim.schedule for rule in RATES} == {"constant", "ess", "staleness"}
    assert TASKS["breakout"].lr == config(corrections()["breakout", "decoupled", 2]).optim.lr


def scored(area, final=None):
    area = np.asarray(area, float)
    return Score(area, area + 1 if final is None else np.asarray(final, float), {})


def test_best_is_the_setting_with_the_highest_mean_over_the_run_and_waits_for_all_three():
    low, middle, high = OBJECTIVES["cispo"].values
    scores = {("cartpole", "cispo", 4, low): scored([1, 2]), ("cartpole", "cispo", 4, middle): scored([5, 6], [0, 0])}
    assert best("cartpole", scores, "cispo", 4) is None
    scores["cartpole", "cispo", 4, high] = scored([3, 3], [9, 9])
    value, score = best("cartpole", scores, "cispo", 4)
    assert value == middle
    assert score.area.tolist() == [5, 6]
    page = "\n".join(objective_tables("cartpole", scores, 0))
    assert f"| CISPO, `surrogate.clip` | not run | 6 (5 to 6) at {middle:g} | not run |" in page
    assert "| CISPO, `surrogate.clip` | not run | 3 | not run |" in page, "the median"


def test_rate_tables_have_a_column_per_factor():
    page = rate_tables("breakout", {("breakout", "ess", 4): scored([2.0, 2.0])}, 1)
    assert any(
        line.startswith("| by effective sample size | not run | not run | not run | not run | 2.0") for line in page
    )
