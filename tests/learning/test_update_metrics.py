"""What the metrics of an update cover: the whole update, or its last minibatch, as the table says."""

import math

import pytest
import torch
from update_helpers import make_batch, make_update

from sfactory.learning.objectives import Loss
from sfactory.monitor.table import LAST_MINIBATCH, METRICS, find_metric

torch.set_num_threads(1)
OF_THE_WHOLE_BATCH = ("losses/grad_norm", "offpolicy/effective_lambda", "offpolicy/max_abs_log_rho")


def watched(update, monkeypatch):
    """Reports of every minibatch of the next update, and norm and `skipped` of every optimizer step."""
    reports, steps = [], []
    loss, step = update.objective.loss, update.optimizer.clip_and_step

    def spy(part, start, report):
        full = loss(part, start, True)
        reports.append({**full.losses, **full.diagnostics})
        return full if report else Loss(full.total, {}, {}, full.gradient)

    def spy_step(limit):
        steps.append(step(limit))
        return steps[-1]

    monkeypatch.setattr(update.objective, "loss", spy)
    monkeypatch.setattr(update.optimizer, "clip_and_step", spy_step)
    return reports, steps


@pytest.mark.parametrize("kernels", ["torch", "native"])
@pytest.mark.parametrize("settings", [{}, {"proximal": "snapshot", "snapshot_age": 0}])
def test_update_reports_its_last_minibatch_and_the_mean_norm_as_the_table_says(monkeypatch, kernels, settings):
    update = make_update(epochs=2, minibatches=4, kernels=kernels, **settings)
    batch = make_batch(update)
    update.run(batch, 0, 0.0)
    reports, steps = watched(update, monkeypatch)
    row = update.run(batch, 1, 0.0)
    assert len(reports) == len(steps) == 8
    assert float(row.pop("losses/grad_norm")) == pytest.approx(sum(float(norm) for norm, _ in steps) / 8, rel=1e-5)
    assert float(row.pop("skipped")) == 0.0
    for name, value in row.items():
        assert torch.equal(value, reports[-1][name]), name
    for name in row.keys() - set(OF_THE_WHOLE_BATCH):
        assert LAST_MINIBATCH in find_metric(name).meaning, name
        assert any(float(report[name]) != float(row[name]) for report in reports), f"{name} covers the whole update"
    for name in OF_THE_WHOLE_BATCH:
        assert LAST_MINIBATCH not in METRICS[name].meaning


def test_the_largest_metrics_of_an_objective_are_those_of_the_table():
    names = {name for name, metric in METRICS.items() if metric.combine == "max" and name.startswith("offpolicy/")}
    assert set(make_update().objective.largest_metrics) == names


def test_update_reports_the_norm_of_the_steps_that_were_taken(monkeypatch):
    update = make_update(minibatches=4)
    _, steps = watched(update, monkeypatch)
    real = update.optimizer.clip_and_step

    def fail_once(limit):
        if len(steps) == 2:
            update.parameters[0].grad.fill_(math.nan)
        return real(limit)

    monkeypatch.setattr(update.optimizer, "clip_and_step", fail_once)
    row = update.run(make_batch(update), 0, 0.0)
    taken = [float(norm) for norm, skipped in steps if not skipped]
    assert float(row["skipped"]) == 1.0
    assert len(taken) == 3
    assert float(row["losses/grad_norm"]) == pytest.approx(sum(taken) / 3, rel=1e-5)


def test_update_whose_steps_were_all_skipped_reports_the_norm_that_was_not_finite():
    update = make_update(minibatches=4)
    batch = make_batch(update)
    batch.reward.fill_(math.nan)
    row = update.run(batch, 0, 0.0)
    assert float(row["skipped"]) == 4.0
    assert not math.isfinite(float(row["losses/grad_norm"]))
