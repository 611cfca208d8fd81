"""Lockstep: how a run ends, what an exact resume restores, and what belongs to the process that saved it."""

from types import SimpleNamespace

import pytest

import sfactory
from sfactory.envs import make_spec
from sfactory.errors import Exit
from sfactory.run.outcome import Outcome
from sfactory.supervisor import lockstep_run, lockstep_state
from sfactory.supervisor.lockstep import Lockstep
from sfactory.supervisor.lockstep_link import Orders
from sfactory.workers.shared import LearnerOutcome, RunSpec, StopOrder


@pytest.fixture
def make(tmp_path):
    made = []

    def start(**sections):
        sampling = {"num_samplers": 1, "groups_per_sampler": 1, "envs_per_group": 2, "rollout_length": 8}
        config = sfactory.make_config("classic/cartpole", run={"mode": "lockstep"}, sampling=sampling, **sections)
        made.append(Lockstep(RunSpec(config, make_spec(config.env.name, {}), str(tmp_path), 0)))
        return made[-1]

    yield start
    for run in made:
        run.close()


def test_restored_run_has_no_orders_of_the_process_that_saved(make):
    run, other = make(), make()
    while run.learner.updates < 2:
        run.turn()
    orders = run.shared.supervisor
    orders.stop, orders.save_requests, orders.proposal = StopOrder.FINISH, 3, LearnerOutcome.INTERRUPTED
    other.learner.update.load_state_dict(run.learner.update.state_dict())
    other.learner.counters.load_state_dict(run.learner.counters.state_dict())
    lockstep_state.restore(other, lockstep_state.capture(run, {}))
    orders = other.shared.supervisor
    assert (orders.stop, orders.save_requests, orders.proposal) == (StopOrder.RUN, 0, LearnerOutcome.RUNNING)
    assert not other.learner.checkpointing.wanted(), "a request that was answered by the checkpoint"
    orders.save_requests = 1
    assert other.learner.checkpointing.wanted()


@pytest.mark.parametrize(("env_steps", "word", "code"), [(16, "finished", 0), (10_000, "requeue", 75)])
def test_update_that_reaches_a_stop_rule_finishes_the_run_although_a_signal_arrived(make, env_steps, word, code):
    run = make(stop={"env_steps": env_steps}, batch={"slots": 1, "minibatches": 1})
    stop = Outcome.of(Exit.REQUEUE, "stopped by signal")
    link = SimpleNamespace(
        begin=lambda: Orders(0, 0, None), record=lambda messages, updated: Orders(0, 0, stop if updated else None)
    )
    outcome = lockstep_run._train(run, link).outcome
    assert (outcome.name, outcome.code) == (word, code)
    assert run.learner.env_steps == 16, "one update"


@pytest.mark.parametrize("env_steps", [16, 10_000])
def test_lockstep_saves_nothing_in_a_folder_that_another_run_has_taken(make, env_steps, tmp_path):
    run = make(stop={"env_steps": env_steps}, batch={"slots": 1, "minibatches": 1})
    run.learner.checkpointing.started_one = True  # else the first one is saved before anything is known
    taken = Outcome.of(Exit.STORAGE, "another run is in its place")
    link = SimpleNamespace(
        begin=lambda: Orders(0, 0, None),
        record=lambda messages, updated: Orders(0, int(updated), taken if updated else None),
    )
    assert lockstep_run._train(run, link).outcome.code == Exit.STORAGE
    assert run.learner.env_steps == 16
    assert not (tmp_path / "checkpoints").exists()
