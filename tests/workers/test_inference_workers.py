"""Several inference workers: each serves the groups of its samplers, and one may be killed without the others."""

from dataclasses import replace

import numpy as np
import torch
from test_hand_over import E, Killed, T, check_rows, make_run_spec
from test_inference_kills import KillAt, Learner

from sfactory.workers.inference import Inference
from sfactory.workers.sampler import Sampler
from sfactory.workers.shared import RunSpec, SharedState
from sfactory.workers.worker import ListSink


def run_spec_with(tmp_path, workers, samplers=3, **run):
    run_spec = make_run_spec(tmp_path, samplers=samplers)
    run = replace(run_spec.config.run, inference_workers=workers, **run)
    return replace(run_spec, config=replace(run_spec.config, run=run))


def test_run_spec_names_every_inference_worker_and_assigns_every_group_to_one(tmp_path):
    run_spec = run_spec_with(tmp_path, 2)
    assert run_spec.workers == ("learner", "inference", "inference-1", "sampler-0", "sampler-1", "sampler-2")
    assert [run_spec.groups_served(number) for number in (0, 1)] == [[0, 1, 4, 5], [2, 3]]
    for group in range(6):
        assert group in run_spec.groups_served(run_spec.inference_of(group))
    assert [run_spec.policy_served(number) for number in (0, 1)] == [0, 0]


def test_run_spec_has_one_inference_worker_in_lockstep_and_at_most_one_per_sampler(tmp_path):
    assert run_spec_with(tmp_path, 2, mode="lockstep").num_inference == 1
    assert run_spec_with(tmp_path, 0).num_inference == 1
    assert run_spec_with(tmp_path, 3).num_inference == 3
    config = run_spec_with(tmp_path, 3).config
    undecided = replace(config, sampling=replace(config.sampling, num_samplers=0))
    assert RunSpec(undecided, make_run_spec(tmp_path).spec, str(tmp_path), 0).num_inference == 1


def test_run_spec_with_two_policies_gives_every_inference_worker_groups_of_one_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(RunSpec, "num_policies", 2)
    run_spec = run_spec_with(tmp_path, 2, samplers=2)
    assert [run_spec.groups_served(number) for number in range(4)] == [[0], [1], [2], [3]]
    assert [run_spec.policy_served(number) for number in range(4)] == [0, 1, 0, 1]
    assert run_spec.workers[:4] == ("learner", "learner-1", "inference", "inference-1")


def pipeline(tmp_path, workers):
    """Shared state, samplers, a learner that takes every full slot, and a function that starts an inference worker."""
    shared = SharedState.create(run_spec_with(tmp_path, workers))

    def start(number):
        return Inference(shared, ListSink(), number=number)

    first = start(0)
    weights = np.empty(first.model.flat_size(), np.float32)
    first.model.write_flat(torch.from_numpy(weights))
    samplers = [Sampler(index, shared, ListSink()) for index in range(3)]
    return shared, samplers, Learner(shared, weights), start


def test_inference_worker_responds_to_the_groups_it_serves_only(tmp_path):
    shared, samplers, _, start = pipeline(tmp_path, 2)
    for sampler in samplers:
        sampler.step()  # recover
        sampler.step()  # begin
    rings = [[], []]
    for number, heard in enumerate(rings):
        assert start(number).step()
        pending = [group for group in range(6) if shared.slot_table.pending(group)]
        assert pending == ([2, 3] if number == 0 else [])
        heard += [index for index, bell in enumerate(shared.sampler_bells) if bell.drain()]
    assert rings == [[0, 2], [1]], "it rings the samplers it served"
    shared.close()


def test_sampler_rings_its_inference_worker_and_the_learner_rings_all(tmp_path):
    shared, samplers, _, _ = pipeline(tmp_path, 2)
    samplers[1].step()
    samplers[1].step()
    assert [bool(bell.drain()) for bell in shared.inference_bells] == [False, True]
    shared.ring_inference()
    assert [bool(bell.drain()) for bell in shared.inference_bells] == [True, True]
    shared.close()


def rows_with_a_kill(tmp_path, kill_at):
    """Train while the second of two inference workers is killed once at its n-th shared access; whether it was."""
    shared, samplers, learner, start = pipeline(tmp_path, 2)
    workers = [start(0), start(1)]
    with KillAt(kill_at) as kill:
        for _ in range(13):
            for sampler in samplers:
                sampler.step()
            workers[0].step()
            kill.armed = True
            try:
                workers[1].step()
            except Killed:
                workers[1] = start(1)
            kill.armed = False
            learner.step()
    counts = shared.slot_table.row_counts()
    assert counts.sampled == len(learner.trained) * T * E + counts.in_flight
    assert counts.discarded == 0
    for sampler in samplers:
        sampler.close()
    shared.close()
    return learner.trained, kill.killed


def test_one_of_two_inference_workers_killed_at_any_moment_loses_no_row(tmp_path):
    """Every 29th moment; `test_inference_kills.py` tries all of them with one worker."""
    expected, _ = rows_with_a_kill(tmp_path, -1)
    assert len(expected) > 12
    for kill_at in range(0, 10_000, 29):
        trained, killed = rows_with_a_kill(tmp_path, kill_at)
        if not killed:
            break
        check_rows(trained)
        assert len(trained) >= len(expected) - 2, "its two groups miss one turn, the others none"
    assert kill_at > 200
