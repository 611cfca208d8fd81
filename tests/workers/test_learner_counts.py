"""What a learner counts: updates with optimizer steps that were not taken, and the episodes of a short run."""

import math
import threading
import time

import pytest

import sfactory
from sfactory.envs import make_spec
from sfactory.learning.distributed import Counts
from sfactory.monitor.episodes import Episodes
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.learner import Learner
from sfactory.workers.shared import LearnerOutcome, RunSpec, SharedState
from sfactory.workers.worker import ListSink

T, LANES, MINIBATCHES = 6, 8, 4


@pytest.fixture
def run(tmp_path):
    config = sfactory.make_config(
        "classic/cartpole",
        run={"mode": "lockstep"},
        sampling={"num_samplers": 1, "groups_per_sampler": 2, "envs_per_group": LANES // 2, "rollout_length": T},
        batch={"minibatches": MINIBATCHES, "epochs": 1},
        normalize={"advantage": False},
    )
    lockstep = Lockstep(RunSpec(config, make_spec(config.env.name, {}), str(tmp_path), 0))
    yield lockstep
    lockstep.close()


def train(run, monkeypatch, updates, *broken):
    """Train with rows whose log-probability of behavior is not a number."""
    learner = run.learner
    copy = learner.staging.copy

    def copy_and_break(*given):
        copy(*given)
        for step, lane in broken:
            learner.staging.batch.log_prob[step, lane] = math.nan

    monkeypatch.setattr(learner.staging, "copy", copy_and_break)
    while learner.updates < updates:
        run.turn()
    monkeypatch.setattr(learner.staging, "copy", copy)


def test_learner_counts_every_row_of_a_partly_skipped_update_as_trained_or_as_skipped(run, monkeypatch):
    learner, rows = run.learner, T * LANES
    learner.counters.count(Counts(), True)  # one that was skipped before
    train(run, monkeypatch, 2, (1, 3))
    counts = run.shared.slot_table.row_counts()
    assert (counts.trained, counts.skipped) == (rows * 3 // 4, rows // 4)
    assert counts.consistent
    valid = learner.staging.batch.valid
    assert learner.env_steps == int((learner.update.trained() & valid).sum())
    assert 0 < learner.env_steps < int(valid.sum())
    assert (learner.counters.skipped_updates, learner.counters.skipped_in_a_row) == (2, 2)


def test_learner_counts_a_wholly_skipped_update_and_a_trained_one(run, monkeypatch):
    learner, rows = run.learner, T * LANES
    train(run, monkeypatch, 1, *((t, b) for t in range(T) for b in range(LANES)))
    counts = run.shared.slot_table.row_counts()
    assert (counts.trained, counts.skipped, learner.env_steps) == (0, rows, 0)
    train(run, monkeypatch, 2)
    counts = run.shared.slot_table.row_counts()
    assert (counts.trained, counts.skipped, learner.env_steps) == (rows, rows, int(learner.staging.valid.sum()))
    assert (learner.counters.skipped_updates, learner.counters.skipped_in_a_row) == (1, 0)


def test_learner_reports_finite_metrics_of_partly_skipped_updates(run, monkeypatch):
    """Those of an update whose reported step was not taken are left out, all others are in the row."""
    learner, last_was_taken = run.learner, []
    for number in range(1, 9):
        train(run, monkeypatch, number, (2, 5))
        learner.counters.skipped_in_a_row = 0  # the run would end
        last_was_taken.append(float(learner.update._skipped[-1]) == 0.0)
    assert len(set(last_was_taken)) == 2, "the seed gives both"
    assert len(learner.metrics.updates) == sum(last_was_taken)
    row = learner.metrics.row()
    assert row
    assert all(math.isfinite(value) for value in row.values())


def test_learner_takes_the_episodes_that_are_under_way_before_a_short_run_ends(tmp_path):
    """All updates may be finished before the supervisor has passed on a single episode."""
    config = sfactory.make_config("classic/cartpole", stop={"env_steps": 1000}, run={"device": "cpu"})
    shared = SharedState.create(RunSpec(config, make_spec(config.env.name, {}), str(tmp_path), 0))
    learner, passed_on = Learner(shared, ListSink()), Episodes()
    passed_on.add([(9.0, 9, 0), (11.0, 11, 0)])
    outcomes = []

    def publish():
        for turn in range(100):
            outcomes.append(learner.words.outcome)
            shared.episodes.write((passed_on if turn > 1 else Episodes()).numbers())
            time.sleep(0.05)
            if learner.finished():
                return

    supervisor = threading.Thread(target=publish)
    learner.counters.count(Counts(1000), skipped=False)
    supervisor.start()
    learner._end_if_due()
    assert learner.words.outcome == LearnerOutcome.STOP_RULE
    assert learner.episodes.training_return == 10.0
    assert learner.counters.seconds < 0.1, "the wait is no training"
    supervisor.join()
    assert set(outcomes) == {LearnerOutcome.RUNNING}, "the supervisor reads no messages after the outcome"
    learner.close()
    shared.close()
