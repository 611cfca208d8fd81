"""The learner's metrics row, and its counters."""

import numpy as np
import pytest
import torch

from sfactory.learning.distributed import Counts
from sfactory.workers.counters import Counters
from sfactory.workers.learner_metrics import LearnerMetrics


def filled():
    metrics = LearnerMetrics(largest=["offpolicy/max_abs_log_rho"])
    for value in (1.0, 4.0, 1.0):
        metrics.add_update(
            {"losses/entropy": torch.tensor(value), "offpolicy/max_abs_log_rho": torch.tensor(10 * value)}
        )
    metrics.add_lag("sampler-0", {0: 1, 2: 1})
    metrics.add_lag("sampler-1", {4: 1})
    return metrics


def test_row_of_learner_metrics_has_means_and_largest_values_since_the_last_row():
    metrics = filled()
    row = metrics.row()
    assert row["losses/entropy"] == 2.0
    assert row["offpolicy/max_abs_log_rho"] == 40.0
    assert (row["lag/mean"], row["lag/max/sampler-0"], row["lag/max/sampler-1"]) == (2.0, 2.0, 4.0)
    assert metrics.row() == {}


def test_restored_learner_metrics_give_the_same_row():
    one, other = filled(), LearnerMetrics(largest=["offpolicy/max_abs_log_rho"])
    other.load_state_dict(one.state_dict(), torch.device("cpu"))
    assert other.row() == one.row()


def test_lag_of_a_row_is_that_of_all_ranks_where_there_are_several_and_is_restored():
    one, other = filled(), LearnerMetrics(largest=["offpolicy/max_abs_log_rho"])
    assert "job_lags" not in one.state_dict(), "the form of a single rank is as before"
    one.add_lag_of_job({0: 1, 2: 1, 4: 1})
    one.add_lag_of_job({2: 1, 9: 1})
    other.load_state_dict(one.state_dict(), torch.device("cpu"))
    row = one.row()
    assert (row["lag/mean"], row["lag/max"], row["lag/max/sampler-1"]) == (3.4, 9.0, 4.0)
    assert other.row() == row
    one.add_lag("sampler-0", {1: 1})
    assert one.row()["lag/mean"] == 1.0, "those of the row before are forgotten"


def test_learner_metrics_restore_the_lags_of_a_checkpoint_of_an_older_version():
    """It has the lag of every step, in an array per slot."""
    metrics = LearnerMetrics()
    lags = {"sampler-0": [np.array([0, 2]), np.array([2])], "sampler-1": [np.array([4])]}
    metrics.load_state_dict({"metrics": [], "lags": lags}, torch.device("cpu"))
    assert metrics.lags == {"sampler-0": {0: 1, 2: 2}, "sampler-1": {4: 1}}
    ((repeated,), _) = metrics.state_dict()["lags"].values()
    assert repeated.tolist() == [0, 2, 2]


def test_counters_count_the_rows_that_were_trained_and_the_updates_that_were_skipped_wholly_or_in_part():
    counters = Counters(clock=lambda: 0.0)
    for rows, skipped in ((100, False), (0, True), (75, True)):
        counters.count(Counts(rows), skipped)
    assert (counters.updates, counters.env_steps) == (3, 175)
    assert (counters.skipped_updates, counters.skipped_in_a_row) == (2, 2)
    counters.count(Counts(50), False)
    assert (counters.env_steps, counters.skipped_updates, counters.skipped_in_a_row) == (225, 2, 0)


def test_counters_of_agents_count_steps_of_environments_and_do_not_guess_those_of_earlier_versions():
    counters = Counters()
    counters.count(Counts(20, 7), False)
    counters.count(Counts(10, 5), False)
    assert (counters.env_steps, counters.environment_steps) == (30, 12)
    assert counters.state_dict()["environment_steps"] == 12
    resumed, old = Counters(), {name: x for name, x in counters.state_dict().items() if name != "environment_steps"}
    resumed.load_state_dict(counters.state_dict())
    assert resumed.environment_steps == 12
    resumed.load_state_dict(old)
    resumed.count(Counts(10, 4), False)
    assert (resumed.env_steps, resumed.environment_steps) == (40, None)
    assert "environment_steps" not in resumed.state_dict()
    alone = Counters()
    alone.count(Counts(20), False)
    assert "environment_steps" not in alone.state_dict()


def test_counters_measure_seconds_without_excluded_time_and_restore_them():
    now = [10.0]
    counters = Counters(clock=lambda: now[0])
    now[0] = 15.0
    counters.exclude(2.0)
    counters.tick()
    assert counters.seconds == pytest.approx(3.0)
    other = Counters(clock=lambda: now[0])
    other.load_state_dict(counters.state_dict())
    now[0] = 16.0
    other.tick()
    assert other.seconds == pytest.approx(4.0)


def test_metrics_of_a_phase_are_averaged_over_the_updates_that_have_them():
    metrics = LearnerMetrics(["high"])
    for number in range(4):
        phase = {"phase": torch.tensor(float(number))} if number % 2 == 0 else {}
        metrics.add_update({**phase, "mean": torch.tensor(float(number)), "high": torch.tensor(float(number))})
    assert metrics.row() == {"mean": 1.5, "high": 3.0, "phase": 1.0}
    assert metrics.row() == {}
