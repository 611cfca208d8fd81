"""Inference killed at any moment: its next generation computes bit-identical responses and recurrent states."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_hand_over import Killed, make_run_spec

from sfactory.config import Model
from sfactory.native.head import NativeActor
from sfactory.shm import atomics
from sfactory.shm.slots import FREE, LEARNING, READY
from sfactory.shm.trajectory import Trajectories
from sfactory.workers.inference import Inference
from sfactory.workers.sampler import Sampler
from sfactory.workers.shared import SharedState
from sfactory.workers.worker import ListSink


class Learner:
    """Publishes weights and takes every READY slot."""

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


class KillAt:
    """Raises Killed at the n-th store of a shared word or access to a shared array by inference."""

    def __init__(self, kill_at):
        self.kill_at, self.count, self.armed = kill_at, 0, False
        self.killed = False
        self.store, self.touch, self.act = atomics.store, Trajectories.__getitem__, NativeActor.act

    def moment(self):
        if not self.armed or self.killed:
            return
        if self.count == self.kill_at:
            self.killed = True
            raise Killed
        self.count += 1

    def __enter__(self):
        def store(array, index, value):
            self.moment()
            self.store(array, index, value)

        def touch(fields, name):
            self.moment()
            return self.touch(fields, name)

        def act(actor, rows, count, params, value):
            for row in range(count):
                self.moment()
                self.act(actor, rows[row : row + 1], 1, params[row : row + 1], value[row : row + 1])

        atomics.store, Trajectories.__getitem__, NativeActor.act = store, touch, act
        return self

    def __exit__(self, *_):
        atomics.store, Trajectories.__getitem__, NativeActor.act = self.store, self.touch, self.act


def trained_rows(tmp_path, core, kernels, kill_at):
    """Slots that the learner trains on while inference is killed once, and whether it was killed."""
    run_spec = make_run_spec(tmp_path, samplers=1)
    model, run = (
        Model(hidden=(8,), core=core, core_size=4 if core != "none" else Model.core_size),
        replace(run_spec.config.run, kernels=kernels),
    )
    run_spec = replace(run_spec, config=replace(run_spec.config, model=model, run=run))
    shared = SharedState.create(run_spec)
    inference = Inference(shared, ListSink(), whole_batch=True)
    weights = np.empty(inference.model.flat_size(), np.float32)
    inference.model.write_flat(torch.from_numpy(weights))
    learner, sampler = Learner(shared, weights), Sampler(0, shared, ListSink())
    with KillAt(kill_at) as kill:
        for _ in range(13):
            sampler.step()
            kill.armed = True
            try:
                inference.step()
                inference.report(lambda: 0.0)
            except Killed:
                inference = Inference(shared, ListSink(), whole_batch=True)
                inference.step()
            kill.armed = False
            learner.step()
    assert shared.slot_table.row_counts().discarded == 0
    sampler.close()
    shared.close()
    return learner.trained, kill.killed


@pytest.mark.sampled(2)
@pytest.mark.parametrize(  # gru touches everything that none does
    ("core", "kernels", "stride", "moments"),
    [("none", "torch", 3, 200), ("gru", "torch", 1, 200), ("none", "native", 1, 80)],
)
def test_inference_killed_at_any_moment_is_restarted_with_identical_responses(tmp_path, core, kernels, stride, moments):
    expected, killed = trained_rows(tmp_path, core, kernels, kill_at=-1)
    assert not killed
    assert len(expected) >= 6
    assert max(int(slot["policy_version"].max()) for slot in expected) > 2
    for kill_at in range(0, 10_000, stride):
        actual, killed = trained_rows(tmp_path, core, kernels, kill_at)
        if not killed:
            break
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=f"{name}, killed at moment {kill_at}")
    assert kill_at > moments
