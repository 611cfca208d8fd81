"""Minibatches of rows have only rows that can be learned from, where agents take turns."""

import pytest
import torch

import sfactory
from sfactory.envs import make_spec
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

torch.set_num_threads(1)
GAME, EPOCHS, MINIBATCHES = "envpool/TicTacToe-v1", 3, 4


@pytest.fixture
def update(tmp_path):
    """An update after its first batch."""
    config = sfactory.make_config(
        GAME,
        run={"mode": "lockstep", "device": "cpu", "learner_threads": 1},
        sampling={"num_samplers": 1, "groups_per_sampler": 2, "envs_per_group": 4, "rollout_length": 12},
        batch={"minibatches": MINIBATCHES, "epochs": EPOCHS},
        model={"hidden": (16,), "encoder": "mlp"},
        checkpoint={"exact": False},
    )
    run = Lockstep(RunSpec(config, make_spec(GAME, {}), str(tmp_path), 0))
    while not run.turn():
        pass
    yield run.learner.update
    run.close()


def test_minibatches_of_a_turn_based_game_have_every_row_of_an_action_once_per_epoch(update):
    batch, order = update._last
    valid = batch.valid.flatten().nonzero().squeeze(1).tolist()
    assert 0.3 < len(valid) / batch.valid.numel() < 0.6
    assert order.shape == (EPOCHS, len(valid))
    for epoch in order:
        assert sorted(epoch.tolist()) == valid
        sizes = [len(part) for part in epoch.tensor_split(MINIBATCHES)]
        assert max(sizes) - min(sizes) <= 1
    assert not torch.equal(order[0], order[1])
    assert update.trained().all()


def test_update_counts_rows_of_skipped_minibatches_in_a_turn_based_game(update):
    batch, order = update._last
    update._skipped[:] = 1.0
    assert not update.trained().any()
    update._skipped[1] = 0.0  # the second minibatch of the first epoch was trained
    trained = update.trained().flatten()
    second = order[0].tensor_split(MINIBATCHES)[1].tolist()
    valid = batch.valid.flatten()
    assert (trained & valid).nonzero().squeeze(1).tolist() == sorted(second)
    assert trained[~valid].all()


def test_update_of_few_actions_keeps_all_rows(update):
    batch, _ = update._last
    few = batch._replace(valid=torch.zeros_like(batch.valid))
    few.valid[0, : MINIBATCHES - 1] = True
    assert update._acting_rows(few) is None
    assert update._order(few, 0).shape == (EPOCHS, batch.valid.numel())


def test_update_where_all_act_together_keeps_all_rows(update):
    batch, _ = update._last
    alone = batch._replace(order=None, successor=None)
    assert update._acting_rows(alone) is None
