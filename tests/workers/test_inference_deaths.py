"""Wherever inference dies, a newborn answers what its predecessor would have answered: to the bit, state too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_hand_over import Killed, make_plan

from sfactory.config import Model
from sfactory.shm import atomics
from sfactory.shm.slots import FREE, LEARNING, READY
from sfactory.shm.trajectory import Trajectories
from sfactory.workers.inference import Inference
from sfactory.workers.sampler import Sampler
from sfactory.workers.shared import SharedState
from sfactory.workers.worker import ListSink


class Learner:
    """Publishes weights now and then and takes whatever is READY."""

    def __init__(self, shared, weights):
        self.shared, self.weights, self.version, self.trained = shared, weights, -1, []
        self.mailbox = shared.mailbox(len(weights))
        self.publish()

    def publish(self):
        self.version += 1
        self.mailbox.begin(self.version)[:] = self.weights * (1.0 + 0.1 * self.version)
        self.mailbox.finish(self.version)

    def step(self):
        slot_table, fields = self.shared.slot_table, self.shared.trajectories
        for group, slot in slot_table.in_state(READY):
            slot_table.transition(group, slot, READY, LEARNING)
            self.trained.append({name: fields[name][group, slot].copy() for name in (*fields.names, "policy_version")})
            fields.poison(group, slot)
            slot_table.transition(group, slot, LEARNING, FREE)
            self.publish()


class Deadly:
    """Counts every store of a shared word and every touch of a shared array that inference makes, and dies at one."""

    def __init__(self, die_at):
        self.die_at, self.count, self.armed = die_at, 0, False
        self.died = False
        self.store, self.touch = atomics.store, Trajectories.__getitem__

    def moment(self):
        if not self.armed or self.died:
            return
        if self.count == self.die_at:
            self.died = True
            raise Killed
        self.count += 1

    def __enter__(self):
        def store(array, index, value):
            self.moment()
            self.store(array, index, value)

        def touch(fields, name):
            self.moment()
            return self.touch(fields, name)

        atomics.store, Trajectories.__getitem__ = store, touch
        return self

    def __exit__(self, *_):
        atomics.store, Trajectories.__getitem__ = self.store, self.touch


def trained_rows(tmp_path, core, die_at):
    """What the learner gets from one sampler of two groups while inference dies once; and whether it died."""
    run_spec = make_plan(tmp_path, samplers=1)
    run_spec = replace(run_spec, config=replace(run_spec.config, model=Model(hidden=(8,), core=core, core_size=4)))
    shared = SharedState.create(run_spec)
    inference = Inference(shared, ListSink(), whole_batch=True)
    weights = np.empty(inference.model.flat_size(), np.float32)
    inference.model.write_flat(torch.from_numpy(weights))
    learner, sampler = Learner(shared, weights), Sampler(0, shared, ListSink())
    with Deadly(die_at) as deadly:
        for _ in range(14):
            sampler.step()
            deadly.armed = True
            try:
                inference.step()
                inference.report(lambda: 0.0)
            except Killed:
                inference = Inference(shared, ListSink(), whole_batch=True)
                inference.step()
            deadly.armed = False
            learner.step()
    assert shared.slot_table.row_counts().discarded == 0
    sampler.close()
    shared.close()
    return learner.trained, deadly.died


@pytest.mark.parametrize("core", ["none", "gru"])
def test_inference_that_dies_at_any_moment_is_succeeded_by_one_that_answers_the_same(tmp_path, core):
    want, died = trained_rows(tmp_path, core, die_at=-1)
    assert not died
    assert len(want) >= 6
    assert max(int(slot["policy_version"].max()) for slot in want) > 2
    for die_at in range(10_000):
        got, died = trained_rows(tmp_path, core, die_at)
        if not died:
            break
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=f"{name}, died at moment {die_at}")
    assert die_at > 200
