"""The lag of lockstep data: 0 or exactly the forced one in every recorded update, or the settings are refused."""

import pytest

import sfactory
from sfactory.envs import make_spec
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec


def make_config(samplers, groups, slots_per_group, slots, forced_lag, mode="lockstep"):
    return sfactory.make_config(
        "classic/cartpole",
        run={"mode": mode},
        sampling={
            "num_samplers": samplers, "groups_per_sampler": groups, "slots_per_group": slots_per_group,
            "envs_per_group": 2, "rollout_length": 3,
        },
        batch={"slots": slots, "forced_lag": forced_lag, "minibatches": 1, "epochs": 1},
    )  # fmt: skip


def recorded_lags(config, folder, updates):
    """The lags of the rows of every update."""
    run = Lockstep(RunSpec(config, make_spec(config.env.name, {}), str(folder), 0))
    try:
        found = []
        while run.learner.updates < updates:
            if run.turn():
                row = run.learner.metrics.row()
                found.append((row["lag/mean"], row["lag/max"]))
        return found
    finally:
        run.close()


@pytest.mark.parametrize("forced_lag", [0, 2, 3])
@pytest.mark.parametrize(
    ("samplers", "groups", "slots_per_group", "slots"),
    [(1, 2, 1, 0), (1, 2, 2, 0), (1, 2, 2, 4), (2, 1, 3, 4), (2, 2, 2, 4), (1, 1, 2, 2), (1, 4, 2, 0)],
)
def test_lockstep_updates_record_the_lag_that_was_set(samplers, groups, slots_per_group, slots, forced_lag, tmp_path):
    config = make_config(samplers, groups, slots_per_group, slots, forced_lag)
    lags = recorded_lags(config, tmp_path, 6)
    assert lags == [(float(min(update, forced_lag)),) * 2 for update in range(6)]


@pytest.mark.parametrize("forced_lag", [0, 2, 3])
@pytest.mark.parametrize(("groups", "slots"), [(2, 1), (2, 3), (4, 2), (3, 2)])
def test_lockstep_is_refused_where_an_update_leaves_out_a_group(groups, slots, forced_lag, tmp_path, monkeypatch):
    """Its data would wait for a later update: the lags of a run without the check vary."""
    with pytest.raises(ValueError, match=rf"batch.slots {slots} leaves out some of the {groups} groups") as refusal:
        make_config(1, groups, 2, slots, forced_lag)
    assert "\n" not in str(refusal.value)
    monkeypatch.setattr("sfactory.config.cross_checks.check_batch", lambda config: None)
    lags = recorded_lags(make_config(1, groups, 2, slots, forced_lag), tmp_path, 8)
    assert len(set(lags[forced_lag + 1 :])) > 1 or {lag for pair in lags[-2:] for lag in pair} != {float(forced_lag)}


def test_async_runs_may_leave_out_groups():
    assert make_config(1, 2, 2, 1, 0, mode="async").batch_slots == 1
