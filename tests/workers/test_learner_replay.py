"""A learner that trains again on slots it has had: what it counts, reports, skips and saves."""

import math

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator, use_on_all_workers

import sfactory
from sfactory.envs import make_spec
from sfactory.envs.saved_state import decode, encode
from sfactory.supervisor import lockstep_state
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.learner_metrics import LearnerMetrics
from sfactory.workers.shared import RunSpec

T, LANES = 6, 8
SECTIONS = {
    "run": {"mode": "lockstep", "debug": True},
    "sampling": {"num_samplers": 1, "groups_per_sampler": 2, "envs_per_group": LANES // 2, "rollout_length": T},
    "batch": {"minibatches": 4, "epochs": 1},
    "replay": {"ratio": 1.5, "max_age": 3},
}


@pytest.fixture
def make(tmp_path):
    made = []

    def start(**sections):
        merged = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {*SECTIONS, *sections}}
        if not merged["replay"]["ratio"]:
            merged["replay"] = {}
        config = sfactory.make_config("classic/cartpole", **merged)
        made.append(Lockstep(RunSpec(config, make_spec(config.env.name, {}), str(tmp_path), 0)))
        return made[-1]

    yield start
    for run in made:
        run.close()


def train(run, updates):
    while run.learner.updates < updates:
        run.turn()
    return run


def weights(run):
    flat = torch.empty(run.learner.model.flat_size())
    run.learner.model.write_flat(flat)
    return flat


def test_learner_counts_fresh_rows_alone(make):
    run, plain = make(), make(replay={"ratio": 0.0}, stop={"env_steps": 10**6})
    steps = []
    for updates in range(1, 9):
        train(run, updates)
        steps.append(int(run.learner.staging.valid.sum()))
        counts = run.shared.slot_table.row_counts()
        assert (counts.trained, counts.skipped) == (updates * T * LANES, 0)
        assert counts.consistent
        assert run.learner.env_steps == sum(steps)
    assert run.learner.batch.valid.shape == (T, LANES + 12)
    assert train(plain, 2).learner.held is None
    assert plain.learner.batch is plain.learner.staging.batch


def test_row_of_metrics_has_share_age_and_lag_of_replayed_steps(make):
    run = train(make(batch={"forced_lag": 2}), 9)
    learner, seen = run.learner, []
    learner.metrics = LearnerMetrics()
    for updates in range(10, 13):
        batch = train(run, updates).learner.batch
        seen.append((batch.lag[batch.valid], batch.fresh[batch.valid]))
    lag, fresh = (torch.cat(x) for x in zip(*seen, strict=True))
    row = {**learner.metrics.replay_row(), **learner.held.row()} | learner.metrics.row()
    assert row["replay/share"] == int((~fresh).sum()) / len(fresh)
    assert row["replay/age"] == pytest.approx(float((lag[~fresh] - 2).mean()))
    assert row["replay/oldest"] == float(lag[~fresh].max()) - 2
    assert row["replay/fresh_lag"] == row["replay/largest_fresh_lag"] == row["lag/max/sampler-0"] == 2.0
    assert row["lag/mean"] == pytest.approx(float(lag.mean()))
    assert row["lag/max"] == float(lag.max()) > 2.0
    assert (row["replay/held_slots"], row["replay/updates_without"]) == (6.0, 2.0)


@pytest.mark.parametrize("step", [(1, 3), "all"])
def test_learner_holds_no_slot_of_a_skipped_update(make, monkeypatch, step):
    run = train(make(loss={"nonfinite_budget": 100}), 4)
    learner = run.learner
    copy = learner.staging.copy

    def copy_and_break(*given):
        copy(*given)
        rows = learner.staging.batch.log_prob
        rows[...] = math.nan if step == "all" else rows
        rows[1, 3] = math.nan

    monkeypatch.setattr(learner.staging, "copy", copy_and_break)
    before = learner.counters.env_steps
    train(run, 5)
    valid, mask = learner.batch.valid[:, :LANES], learner.update.trained()[:, :LANES]
    assert learner.counters.env_steps - before == int((valid & mask).sum()) < int(valid.sum())
    counts = run.shared.slot_table.row_counts()
    assert counts.skipped == T * LANES - int(mask.sum())
    assert counts.consistent
    monkeypatch.setattr(learner.staging, "copy", copy)
    assert sorted(learner.held.births) == [1, 2, 3]  # not 4
    train(run, 8)
    assert learner.counters.skipped_updates == 1
    assert all(torch.isfinite(leaf.float()).all() for leaf in learner.held.ring.values())


def test_two_runs_with_replay_are_the_same_bit_for_bit_and_differ_from_one_without(make):
    one, other, without = (train(make(replay=replay), 8) for replay in ({}, {}, {"ratio": 0.0}))
    assert torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), weights(without))


@pytest.mark.parametrize("forced_lag", [0, 2])
def test_restored_run_holds_the_same_slots_and_goes_on_to_the_bit(make, forced_lag):
    settings = {"batch": {"forced_lag": forced_lag}}
    run = train(make(**settings), 6)
    arrays = lockstep_state.capture(run, {})
    parts = {n: {k: x.clone() for k, x in part.items()} for n, part in run.learner.update.state_dict().items()}
    counters = run.learner.counters.state_dict()
    other = make(**settings)
    other.learner.update.load_state_dict(parts)
    other.learner.counters.load_state_dict(counters)
    lockstep_state.restore(other, arrays)
    for one in (run, other):
        train(one, 10)
    assert torch.equal(weights(run), weights(other))
    rows = [{**one.learner.metrics.replay_row(), **one.learner.held.row()} for one in (run, other)]
    assert rows[0] == rows[1]
    assert rows[0]["replay/share"] > 0.5
    dropped = make(**settings, replay={"ratio": 0.0})  # a resume may switch it off
    dropped.learner.update.load_state_dict(parts)
    lockstep_state.restore(dropped, arrays)


def test_windows_of_a_learner_survive_being_written_as_json(make):
    learner = train(make(), 6).learner
    windows = decode(encode(learner.windows()))
    other = make()
    other.learner.counters.updates = learner.updates
    other.learner.set_windows(windows, learner.held_slots()["held"])
    assert other.learner.metrics.replay_row() == learner.metrics.replay_row()
    assert other.learner.held.births == learner.held.births
    assert np.array_equal(other.learner.held.dump(), learner.held.dump())


def test_learner_says_that_held_slots_of_another_size_are_dropped(make):
    learner, other = train(make(), 6).learner, make(batch={"slots": 4})
    other.learner.set_windows(learner.windows(), learner.held_slots()["held"])
    assert "replay: the checkpoint holds slots of another size; nothing is held at first" in [
        line for kind, _, line in other.sink.drain() if kind == "log"
    ]
    train(other, 8)


@pytest.mark.parametrize("model", [{}, {"core": "gru", "core_size": 8}])
def test_replay_on_an_accelerator_equals_replay_on_the_cpu_and_is_recorded_once(make, monkeypatch, model):
    sections = {"run": {"kernels": "torch", "device": "cpu"}, "model": {"hidden": (16,), "separate": False, **model}}
    accelerator = FakeAccelerator()
    use_on_all_workers(accelerator, monkeypatch)
    run = train(make(**sections), 9)
    assert accelerator.recordings == 2  # one shape of inference, one of updates
    assert not [line for kind, _, line in run.sink.drain() if kind == "log" and "not recorded" in line]
    monkeypatch.undo()
    plain = train(make(**sections), 9)
    assert run.learner.env_steps == plain.learner.env_steps
    torch.testing.assert_close(weights(run), weights(plain), rtol=1e-3, atol=1e-4)
