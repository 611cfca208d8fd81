"""Samplers, the book and their neighbours in one process: nothing is lost, nothing is used twice, wherever one dies."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sfactory.config import BatchConfig, Config, Env, Run, Sampling
from sfactory.envs import make_spec
from sfactory.shm import atomics
from sfactory.shm.slots import FREE, LEARNING, READY, unpack
from sfactory.workers.sampler import Sampler, env_seeds, slot_noise
from sfactory.workers.shared import RunSpec, SharedState
from sfactory.workers.worker import ListSink

T, E, SLOTS = 3, 4, 2


def make_plan(tmp_path, samplers=3, groups=2, slots=SLOTS, **env):
    settings = {"length": 5, **env}
    config = Config(
        run=Run(debug=True),
        env=Env(name="faults/count", settings=settings),
        sampling=Sampling(samplers, groups, E, T, slots),
        batch=BatchConfig(slots=0),
    )
    return RunSpec(config, make_spec("faults/count", settings), str(tmp_path), 0)


@pytest.fixture
def shared(tmp_path):
    return SharedState.create(make_plan(tmp_path))


class Neighbours:
    """Inference and learner in twenty lines: answer everything, train whatever is READY, and check what arrives."""

    def __init__(self, shared):
        self.shared, self.slot_table, self.trained = shared, shared.slot_table, []

    def answer(self):
        slot_table = self.slot_table
        for group in np.flatnonzero(slot_table.request != slot_table.response_words).tolist():
            _, slot, t = unpack(slot_table.request_words[group])
            fields = self.shared.trajectories
            fields["action"][group, slot, t] = 0
            for name in ("log_prob", "value", "params", "policy_version"):
                fields[name][group, slot, t] = 0
            slot_table.respond(group, int(slot_table.request_words[group]))

    def train(self):
        for group, slot in self.slot_table.in_state(READY):
            self.slot_table.transition(group, slot, READY, LEARNING)
            fields = self.shared.trajectories
            self.trained.append({name: fields[name][group, slot].copy() for name in fields.names} | {"group": group})
            fields.poison(group, slot)
            atomics.store(self.slot_table.trained, 0, int(self.slot_table.trained[0]) + T * E)
            self.slot_table.transition(group, slot, LEARNING, FREE)


def check_rows(trained):
    """Every row of a slot was written in this worker of the slot and by one sampler: nothing poisoned, nothing torn."""
    for slot in trained:
        for name, array in slot.items():
            if name != "group" and array.dtype.kind == "f":
                assert np.isfinite(array).all(), name
        counter = slot["obs"][:, :, 1]  # the environment's own step counter
        inside = slot["valid"] & ~slot["terminated"]
        assert (np.diff(counter, axis=0)[inside] == 1).all()


def test_rows_arrive_once_and_in_order(shared):
    neighbours, samplers = Neighbours(shared), [Sampler(i, shared, ListSink()) for i in range(3)]
    for _ in range(60):
        neighbours.answer()
        for sampler in samplers:
            sampler.step()
        neighbours.train()
    check_rows(neighbours.trained)
    assert len(neighbours.trained) > 60
    for group in range(6):
        mine = [slot for slot in neighbours.trained if slot["group"] == group]
        for before, after in itertools.pairwise(mine):  # row T of a slot is row 0 of the next
            np.testing.assert_array_equal(before["obs"][T], after["obs"][0])
            np.testing.assert_array_equal(before["first"][T], after["first"][0])
    assert shared.slot_table.row_counts().consistent


def test_without_free_slots_samplers_wait_and_drop_nothing(shared):
    neighbours, sampler = Neighbours(shared), Sampler(0, shared, ListSink())
    for _ in range(50):
        neighbours.answer()
        sampler.step()
    assert len(shared.slot_table.in_state(READY)) == 2 * SLOTS
    assert not sampler.step()
    asked = shared.slot_table.request_words.copy()
    neighbours.train()
    assert sampler.step()
    assert (shared.slot_table.request_words[:2] != asked[:2]).all()


class Killed(Exception):
    """The process is gone."""


def life_with_a_death(shared, die_at):
    """One sampler lives, dies at its n-th store of a shared word, and a newborn takes over. Returns the neighbours."""
    neighbours, stores, real = Neighbours(shared), 0, atomics.store
    armed = True

    def store(array, index, value):
        nonlocal stores, armed
        if armed:
            if stores == die_at:
                armed = False
                raise Killed
            stores += 1
        real(array, index, value)

    def live(generation, steps):
        sampler = Sampler(0, shared, ListSink(), generation)
        for _ in range(steps):
            atomics.store = real  # the neighbours never die here
            neighbours.answer()
            neighbours.train()
            atomics.store = store
            sampler.step()
            atomics.store = real
            ledger = shared.slot_table.row_counts()
            assert ledger.consistent or any(run.number < 0 for run in sampler.runs), ledger

    try:
        atomics.store = store
        live(0, 40)
    except Killed:
        atomics.store = real
        live(1, 40)
    finally:
        atomics.store = real
    return neighbours, armed


def test_a_sampler_that_dies_at_any_store_is_succeeded_without_a_torn_row_and_the_ledger_balances(tmp_path):
    deaths = 0
    for die_at in range(400):
        shared = SharedState.create(make_plan(tmp_path, samplers=1))
        neighbours, survived = life_with_a_death(shared, die_at)
        check_rows(neighbours.trained)
        assert shared.slot_table.row_counts().consistent
        shared.close()
        if survived:
            break
        deaths += 1
    assert survived
    assert deaths > 100  # heartbeats, requests and hand-overs were all interrupted


def test_a_newborn_waits_for_its_predecessors_answer(shared):
    neighbours, first = Neighbours(shared), Sampler(0, shared, ListSink())
    first.step()
    first.step()
    assert shared.slot_table.pending(0)
    newborn = Sampler(0, shared, ListSink(), generation=1)
    assert not newborn.step()
    neighbours.answer()
    number = shared.slot_table.last_request(0).number
    newborn.step()
    newborn.step()
    assert shared.slot_table.last_request(0).number == number + 1  # numbers never restart
    assert shared.slot_table.row_counts().discarded == number * E * 2


def test_noise_depends_on_group_launch_and_request_and_on_nothing_else():
    shape = (T, E, 1)
    base = slot_noise(1, 0, 0, 1, shape)
    np.testing.assert_array_equal(base, slot_noise(1, 0, 0, 1, shape))
    for other in ((2, 0, 0, 1), (1, 1, 0, 1), (1, 0, 1, 1), (1, 0, 0, 4)):
        assert (slot_noise(*other, shape) != base).all()
    assert 0.0 <= base.min() <= base.max() < 1.0


def test_every_environment_of_every_incarnation_has_a_seed_of_its_own():
    seeds = [s for launch in range(2) for worker in range(3) for s in env_seeds(1, launch, worker, 0, 50)]
    assert len(set(seeds)) == len(seeds)
    assert env_seeds(1, 0, 0, 10, 5) == env_seeds(1, 0, 0, 0, 50)[10:15]


def test_reset_rows_and_failures_are_marked_invalid_and_first_follows(shared):
    neighbours, sampler = Neighbours(shared), Sampler(0, shared, ListSink())
    for _ in range(60):
        neighbours.answer()
        sampler.step()
        neighbours.train()
    slots = [slot for slot in neighbours.trained if slot["group"] == 0]
    rows = {
        name: np.concatenate([slot[name][:T] for slot in slots]) for name in ("first", "valid", "terminated", "reward")
    }
    ended = rows["terminated"]
    assert ended.any()
    np.testing.assert_array_equal(
        ~rows["valid"][1:], ended[:-1]
    )  # the row after an end, and no other, is the reset row
    np.testing.assert_array_equal(rows["first"][1:], ~rows["valid"][:-1])
    assert (rows["reward"][~rows["valid"]] == 0).all()


def test_a_plan_knows_its_shapes(tmp_path):
    run_spec = make_plan(tmp_path)
    assert run_spec.schema.num_noise == 1
    assert run_spec.workers == ("learner", "inference", "sampler-0", "sampler-1", "sampler-2")
    assert [run_spec.sampler_of(g) for g in range(6)] == [0, 0, 1, 1, 2, 2]
    gru = replace(run_spec, config=replace(run_spec.config, model=replace(run_spec.config.model, core="gru", core_size=7)))
    assert gru.schema.state_size == 7
