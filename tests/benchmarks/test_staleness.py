"""The settings that staleness.py compares, and its tables."""

import json

import numpy as np
import pytest
from figures import save
from grid import Run, Score
from scores import Scores
from staleness import Objectives, chosen, objective_tables, option_tables, rate_tables, scores_of, tuned
from staleness_cells import (
    FACTORS,
    OBJECTIVES,
    OPTIONS,
    RATES,
    TASKS,
    corrections,
    objectives,
    options,
    rates,
    tuning,
)

from sfactory.algo.surrogates.registry import SURROGATES


def config(cell):
    return Run(cell, 0, None).config()


def test_every_objective_has_a_row_and_each_row_three_settings():
    assert {row.objective or name for name, row in OBJECTIVES.items()} == set(SURROGATES)
    for name, row in OBJECTIVES.items():
        assert len(set(row.values)) == 3, name


@pytest.mark.parametrize("task", ["cartpole", "breakout"])
def test_cells_that_choose_a_setting_are_accepted_and_differ_by_their_knob(task):
    cells = {key: cell for key, cell in tuning().items() if key[0] == task}
    assert {key[2] for key in cells} == set(TASKS[task].tuning_lags) <= set(TASKS[task].short_lags)
    lag = TASKS[task].short_lags[-1]
    for name, row in OBJECTIVES.items():
        found = [config(cells[task, name, lag, value]) for value in row.values]
        assert {c.surrogate.objective for c in found} == {row.objective or name}
        assert {c.batch.forced_lag for c in found} == {lag}
        assert len({repr(c) for c in found}) == 3, name


def test_all_lags_are_those_of_the_corrections():
    assert {key[2] for key in tuning(all_lags=True) if key[0] == "cartpole"} == {0, 1, 2, 4, 8, 16}


def test_comparison_has_the_flags_of_the_choice_and_other_seeds():
    key = ("breakout", "cispo", 8)
    value = OBJECTIVES["cispo"].values[1]
    first, second = tuning()[*key, value], objectives({key: value})[key]
    assert first.flags == second.flags
    assert (first.steps, second.steps) == (TASKS["breakout"].tuning_steps, TASKS["breakout"].steps)
    seeds = [{config_of_seed(cell, seed).run.seed for seed in range(10)} for cell in (first, second)]
    assert not seeds[0] & seeds[1]


def config_of_seed(cell, seed):
    return Run(cell, seed, None).config()


def test_names_of_cells_are_different_and_their_flags_are_accepted():
    of_objectives = objectives({key[:3]: key[3] for key in tuning()})
    sets = [set(corrections().values()), *(list(x.values()) for x in (options(), rates(), tuning(), of_objectives))]
    assert len({cell.name for cells in sets for cell in cells}) == sum(map(len, sets))
    for cell in [*sets[0], *sets[1], *sets[2]]:
        assert config(cell).stop.env_steps == cell.steps


def test_options_differ_from_the_default_at_every_lag():
    found = {key: config(cell) for key, cell in options().items()}
    for task in ("cartpole", "breakout"):
        for lag in TASKS[task].short_lags:
            assert len({repr(found[task, option, lag]) for option in OPTIONS}) == len(OPTIONS)


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


def write_curves(path, cells):
    """A file of scores: cell -> returns of its seeds."""
    kept = Scores(path)
    for cell, returns in cells.items():
        for seed, value in enumerate(returns):
            run = Run(cell, seed, path.parent / "run")
            run.folder.mkdir(exist_ok=True)
            row = {"env_steps": cell.steps, "charts/episodic_return": value}
            (run.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            run.keep(kept, 1.0)
    return Scores(path)


def test_setting_with_the_highest_mean_is_chosen_and_compared_when_all_three_are_there(tmp_path):
    low, middle, high = OBJECTIVES["cispo"].values
    cells = tuning()
    of_lag = {value: cells["cartpole", "cispo", 4, value] for value in (low, middle, high)}
    kept = write_curves(tmp_path / "a.csv", {of_lag[low]: [1, 2], of_lag[middle]: [5, 6], of_lag[high]: [9]})
    assert tuned(kept) == {}
    kept = write_curves(tmp_path / "b.csv", {of_lag[low]: [1, 2], of_lag[middle]: [5, 6], of_lag[high]: [9, 1]})
    of_tuning = tuned(kept)
    key = ("cartpole", "cispo", 4)
    assert of_tuning == {key: {low: 1.5, middle: 5.5, high: 5.0}}
    assert chosen(of_tuning) == {key: middle}
    cell = objectives(chosen(of_tuning))[key]
    kept = write_curves(tmp_path / "b.csv", {cell: [70, 80]})
    scores, seeds = scores_of(objectives(chosen(tuned(kept))), kept, 5)
    assert seeds["cartpole"] == 2
    page = "\n".join(objective_tables("cartpole", Objectives(scores, chosen(of_tuning), of_tuning), 0))
    assert f"| CISPO, `surrogate.clip` | not run | 75 (70 to 80) at {middle:g} | not run |" in page
    settings = f"{low:g}, {middle:g}, {high:g}"
    assert f"| CISPO, `surrogate.clip` {settings} | not run | 2 / 6 / 5 | not run |" in page


def test_a_lag_without_runs_that_choose_takes_the_setting_of_the_nearest_lag():
    of_lag_0, of_lag_8 = {("breakout", "cispo", 0): {1.0: 5.0, 2.0: 4.0}}, {("breakout", "cispo", 8): {1.0: 1, 2.0: 2}}
    assert chosen(of_lag_0) == {("breakout", "cispo", 0): 1.0}, "the other runs are still missing"
    choices = {lag: chosen(of_lag_8 | of_lag_0)["breakout", "cispo", lag] for lag in TASKS["breakout"].short_lags}
    assert choices == {0: 1.0, 2: 1.0, 8: 2.0}


def test_option_tables_have_a_row_per_option_and_a_column_per_lag():
    page = option_tables("breakout", {("breakout", "sfpo", 8): scored([2.0, 2.0])}, 1)
    assert "| SFPO, 3 fast passes | not run | not run | 2.0 (2.0 to 2.0) |" in page


def test_rate_tables_have_a_column_per_factor():
    page = rate_tables("breakout", {("breakout", "ess", 4): scored([2.0, 2.0])}, 1)
    assert any(
        line.startswith("| by effective sample size | not run | not run | not run | not run | 2.0") for line in page
    )


def test_saved_figures_have_the_same_bytes_every_time(tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.errorbar([1, 2], [3, 4], yerr=[0.1, 0.2], label="a")
        save(figure, "one", tmp_path)
        found.append([(tmp_path / f"one.{kind}").read_bytes() for kind in ("svg", "png")])
    assert found[0] == found[1]


def test_option_tables_leave_out_options_without_runs():
    one = Score(np.ones(3), np.ones(3), {})
    page = "\n".join(option_tables("breakout", {("breakout", "vtrace", 8): one}, 1))
    assert "| V-trace | not run | not run | 1.0 (1.0 to 1.0) |" in page
    assert "Retrace" not in page
