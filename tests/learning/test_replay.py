"""Replay: slots that are held, which of them an update draws, and what it learns from them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator

from sfactory.config import BatchConfig, Config, Env, Model, Normalize, ReplayConfig, Run, Sampling, with_settings
from sfactory.envs import Leaf, make_spec
from sfactory.learning.batch_fields import replay_bytes, replay_line
from sfactory.learning.network import build_model
from sfactory.learning.replay import HeldSlots
from sfactory.learning.staging import Staging
from sfactory.learning.update import Update
from sfactory.workers.shared import RunSpec, SharedState

torch.set_num_threads(1)
T, E, GROUPS = 5, 4, 2
F = E * GROUPS


def make_config(ratio=1.0, max_age=3, core="none", kernels="torch", minibatches=2, normalize=True):
    return Config(
        env=Env(name="faults/count"),
        run=Run(kernels=kernels, learner_threads=1, seed=7),
        sampling=Sampling(1, GROUPS, E, T, 2),
        batch=BatchConfig(epochs=1, minibatches=minibatches),
        replay=ReplayConfig(ratio=ratio, max_age=max_age) if ratio else ReplayConfig(),
        model=Model(core=core, core_size=8 if core != "none" else Model.core_size, hidden=(16,)),
        normalize=Normalize(obs=normalize, reward=normalize, advantage=False),
    )


class Data:
    """Slots full of random rows, written again before each update as samplers do."""

    def __init__(self, config, folder, accelerator=None, turns=False):
        """turns: two agents act in turns."""
        spec = make_spec("faults/count")
        if turns:
            spec = replace(spec, obs=spec.obs | {"acting": Leaf((), "bool")}, agents=("a", "b"), acting="acting")
        self.run_spec = RunSpec(config, spec, str(folder), 0)
        self.shared = SharedState.create(self.run_spec)
        self.generator = np.random.default_rng(1)
        self.fields = self.shared.trajectories
        self.staging = Staging(
            self.run_spec.schema, self.run_spec.batch_lanes, accelerator, direct=False, acting=spec.acting
        )

    def stage(self, updates, lag=0):
        """Write other rows, which a policy of `lag` updates ago acted in, and stage them."""
        for name in self.fields.names:
            field = self.fields[name]
            if field.dtype.kind == "f":
                field[...] = self.generator.normal(size=field.shape)
            else:
                field[...] = self.generator.random(field.shape) < 0.5
        self.fields["policy_version"][...] = updates - lag
        self.copy(updates)

    def copy(self, updates):
        self.staging.copy([(group, 0) for group in range(GROUPS)], self.fields, updates)


@pytest.fixture
def data(tmp_path):
    made = []

    def make(config, accelerator=None, turns=False):
        made.append(Data(config, tmp_path, accelerator, turns))
        return made[-1]

    yield make
    for one in made:
        one.shared.close()


def leaves(batch):
    """The fields of a batch by name, with the axis of lanes in second place."""
    found = {f"obs.{name}": leaf for name, leaf in batch.obs.items()}
    found |= {f"action.{name}": leaf for name, leaf in batch.action.items()}
    rest = batch._replace(obs=None, action=None, fresh=None, state=None)._asdict()
    found |= {name: leaf for name, leaf in rest.items() if leaf is not None}
    return found | ({} if batch.state is None else {"state": batch.state.unsqueeze(0)})


def clone(batch):
    return {name: leaf.clone() for name, leaf in leaves(batch).items()}


@pytest.mark.parametrize("create", [lambda: None, FakeAccelerator])
@pytest.mark.parametrize(("core", "turns"), [("none", False), ("gru", False), ("none", True)])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_mix_puts_rows_of_older_batches_beside_the_fresh_ones_with_the_lag_of_now(data, create, core, turns, ratio):
    config, accelerator = make_config(ratio, 3, core), create()
    source = data(config, accelerator, turns)
    held, before, rows = HeldSlots(config, source.staging, accelerator), {}, source.run_spec.schema.lanes
    drawn = []
    for updates in range(8):
        source.stage(updates, lag=updates % 2)
        before[updates] = clone(source.staging.batch)
        batch, replayed = held.mix(updates)
        slots = held.chosen(updates)
        assert len(slots) == len(replayed) == (int(2 * ratio) if updates >= ratio else 0)
        if not slots:
            assert batch is source.staging.batch
            assert batch.fresh is None
        else:
            assert len(set(slots)) == len(slots)
            assert [one.age for one in replayed] == [updates - birth for birth, _ in slots]
            assert all(1 <= one.age <= 3 for one in replayed)
            now, end = leaves(batch), GROUPS * rows
            for name, leaf in now.items():
                assert torch.equal(leaf[:, :end], before[updates][name]), name
                for number, (birth, slot) in enumerate(slots):
                    found = leaf[:, end + number * rows : end + (number + 1) * rows]
                    expected = before[birth][name][:, slot * rows : (slot + 1) * rows]
                    age = updates - birth if name == "lag" else 0
                    assert torch.equal(found, expected + age if age else expected), name
            assert batch.fresh[:, :end].all()
            assert not batch.fresh[:, end:].any()
            assert batch.fresh.shape == batch.valid.shape == (T, end + len(slots) * rows)
            for number, one in enumerate(replayed):
                lanes = slice(end + number * rows, end + (number + 1) * rows)
                counted = Counter(batch.lag[:, lanes][batch.valid[:, lanes]].long().tolist())
                assert one.lags == counted
        drawn += [updates - birth for birth, _ in slots]
        held.hold(updates)
    assert set(drawn) == {1, 2, 3}  # every age that is allowed
    assert held.updates_without == ratio.__ceil__()


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_replayed_slot_has_the_weights_and_traces_of_the_same_slot_as_stale_data(data, estimator, kernels):
    """Staged now for the first time, with the version stamps that it has, as with a forced lag of its age."""
    config = make_config(1.0, 3, kernels=kernels)
    config = replace(config, trace=replace(config.trace, estimator=estimator))
    source = data(config)
    held = HeldSlots(config, source.staging)
    torch.manual_seed(0)
    update = Update(config, build_model(config, source.run_spec.spec), torch.device("cpu"))
    stored = {}
    for updates in range(5):
        source.stage(updates)
        stored[updates] = {name: source.fields[name].copy() for name in (*source.fields.names, "policy_version")}
        batch, _ = held.mix(updates)
        if updates == 4:
            slots = held.chosen(updates)
            start = update.objective.start(batch, update.network.forward_eval(batch))
            for number, (birth, slot) in enumerate(slots):
                for name, field in stored[birth].items():
                    source.fields[name][...] = field
                source.copy(updates)  # late: this is what a forced lag does
                stale = source.staging.batch
                again = update.objective.start(stale, update.network.forward_eval(stale))
                lanes = slice(F + number * E, F + (number + 1) * E), slice(slot * E, (slot + 1) * E)
                assert stale.lag[0, 0] == updates - birth > 0
                assert torch.equal(batch.lag[:, lanes[0]], stale.lag[:, lanes[1]])
                for name in ("log_rho", "weight", "target", "advantage", "value", "log_prob"):
                    mine, other = getattr(start, name)[:, lanes[0]], getattr(again, name)[:, lanes[1]]
                    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6, msg=name)
            assert float(start.log_rho.abs().max()) > 0.1
        else:
            update.run(batch, updates, 0.0)
            held.hold(updates)


def test_a_batch_whose_update_was_skipped_is_not_replayed(data):
    config = make_config(1.0, 2)
    source = data(config)
    held = HeldSlots(config, source.staging)
    births = []
    for updates in range(7):
        source.stage(updates)
        held.mix(updates)
        births.append({birth for birth, _ in held.chosen(updates)})
        if updates != 3:
            held.hold(updates)
    assert 3 not in set().union(*births)
    assert births[0] == births[5] - {4} == set()
    assert births[4] == {2}
    assert held.updates_without == 1


def test_what_is_drawn_depends_on_seed_and_update_alone(data):
    config = make_config(1.0, 8)
    source = data(config)

    def drawn(seed):
        of_seed = replace(config, run=replace(config.run, seed=seed))
        held, found = HeldSlots(of_seed, source.staging), []
        for updates in range(20):
            source.stage(updates)
            held.mix(updates)
            found.append(held.chosen(updates))
            held.hold(updates)
        return found

    assert drawn(1) == drawn(1) != drawn(2)
    ages = {tuple((updates - birth, slot) for birth, slot in found) for updates, found in enumerate(drawn(1))}
    assert len(ages) > 8  # not the same slots of every batch
    counts = Counter(one for slots in drawn(1) for one in slots)
    assert 0.7 < sum(counts.values()) / (2 * 20) < 1.0  # once in the mean, but for the first update and the last ones


def test_saved_slots_are_held_again_as_far_as_they_are_not_too_old(data):
    config = make_config(1.0, 4)
    source = data(config)
    held = HeldSlots(config, source.staging)
    for updates in range(6):
        source.stage(updates, lag=1)
        held.mix(updates)
        held.hold(updates)
    state, contents = held.state_dict(), held.dump()
    assert len(contents) == sum(leaf.nbytes for leaf in held.ring.values())
    source.stage(6)
    expected, same = clone(held.mix(6).batch), HeldSlots(config, source.staging)
    assert same.load(state, contents, 6)
    batch, replayed = same.mix(6)
    assert {name: leaf.tolist() for name, leaf in leaves(batch).items()} == {n: x.tolist() for n, x in expected.items()}
    assert replayed == held.mix(6).replayed
    assert same.updates_without == 1
    younger = HeldSlots(make_config(1.0, 2), source.staging)
    assert younger.load(state, contents, 6)
    assert sorted(younger.births) == [4, 5]
    for name, ring in younger.ring.items():
        for birth in (4, 5):
            assert torch.equal(ring[birth % 2], held.ring[name][birth % 4])
    assert not younger.load(state, contents[:-1], 6)
    assert younger.births == {}
    assert younger.load(None, None, 6)


@pytest.mark.parametrize(("core", "turns"), [("none", False), ("gru", False), ("none", True)])
def test_replay_needs_the_memory_that_is_computed_before_the_run(data, core, turns):
    config = make_config(1.5, 3, core)
    source = data(config, turns=turns)
    held = HeldSlots(config, source.staging)
    spec = source.run_spec
    sizes = {held.nbytes}
    for updates in range(9):
        source.stage(updates)
        held.mix(updates)
        held.hold(updates)
        sizes.add(held.nbytes)
        assert held.row()["replay/held_slots"] == min(3, updates + 1) * GROUPS
    assert sizes == {replay_bytes(config, spec.schema, spec.spec.acting)}
    assert held.row()["replay/memory_mb"] == held.nbytes / 1e6
    line = replay_line(config, spec.schema, spec.spec.acting)
    assert f"6 slots are held, {held.nbytes / 1e6:,.1f} MB" in line
    assert replay_bytes(make_config(0.0), spec.schema) == 0
    assert replay_line(make_config(0.0), spec.schema) == ""


def test_replay_line_says_how_large_the_optimizer_steps_are(data):
    source = data(make_config())
    line = replay_line(make_config(1.0), source.run_spec.schema)
    assert "40 fresh rows and 40 replayed ones, at most 3 updates after the first time, in 2 minibatches of 40" in line
    assert "(20 without replay; --batch.minibatches 4 keeps that size)" in line
    assert "keeps that size" not in replay_line(make_config(0.5, minibatches=1), source.run_spec.schema)


def test_statistics_of_observations_and_rewards_count_every_row_once(data):
    config = make_config(2.0, 3)
    source = data(config)
    held, update, alone = HeldSlots(config, source.staging), *(
        Update(config, build_model(config, source.run_spec.spec), torch.device("cpu")) for _ in range(2)
    )  # fmt: skip
    valid = 0
    for updates in range(6):
        source.stage(updates)
        valid += int(source.staging.batch.valid.sum())
        batch, _ = held.mix(updates)
        update.normalizers.update(batch, batch.valid)
        alone.normalizers.update(source.staging.batch, source.staging.batch.valid)
        held.hold(updates)
    state, expected = update.normalizers.state_dict(), alone.normalizers.state_dict()
    assert state["obs.obs.count"] == state["reward.count"] == valid
    for name, x in state.items():
        torch.testing.assert_close(x, expected[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize(
    ("core", "proximal"),
    [("gru", "recompute"), *(("none", name) for name in ("recompute", "behavior", "ewma", "interpolate", "snapshot"))],
)
def test_update_trains_on_batches_of_both_sizes(data, core, proximal, kernels):
    config = make_config(2.0, 3, core, kernels)
    objective = "ppo" if proximal == "behavior" else "decoupled"
    config = with_settings(config, {"proximal.policy": proximal, "surrogate.objective": objective})
    if proximal == "snapshot":
        config = with_settings(config, {"proximal.snapshot_age": 0, "proximal.snapshots_kept": 2})
    source = data(config)
    update = Update(config, build_model(config, source.run_spec.spec), torch.device("cpu"))
    held, shapes = HeldSlots(config, source.staging), []
    for updates in range(5):
        source.stage(updates)
        batch, _ = held.mix(updates)
        before = update.flat.values.clone()
        metrics = update.run(batch, updates, 0.0)
        assert metrics["skipped"] == 0
        assert not torch.equal(update.flat.values, before)
        assert update.trained().shape == batch.valid.shape
        shapes.append(tuple(batch.valid.shape))
        held.hold(updates)
    assert shapes == [(T, F)] * 2 + [(T, 3 * F)] * 3


def test_device_without_memory_for_the_held_slots_is_refused_with_the_settings_to_change(data, monkeypatch):
    config = make_config()
    source = data(config)

    def full(*unused):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    monkeypatch.setattr(torch.Tensor, "new_zeros", full)
    with pytest.raises(ValueError, match=r"replay.max-age 3 with replay.ratio 1 needs more memory .*9 GiB\)$"):
        HeldSlots(config, source.staging)
