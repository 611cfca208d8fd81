"""The learning-rate schedule kl_adaptive: the KL it reads is that of the whole update, after its last step."""

import math

import pytest
import torch
from fake_accelerator import FakeAccelerator
from update_helpers import divide_into_parts, make_batch, make_update

from sfactory.config import with_settings
from sfactory.learning.distributed import SingleLearner
from sfactory.learning.objectives.base import KL_METRIC
from sfactory.learning.update import Update

torch.set_num_threads(1)
SHAPES = {"one step": (1, 1), "minibatches": (1, 4), "epochs": (3, 4), "whole batches": (2, 1)}


def adaptive(learners=None, accelerator=None, kl_target=0.01, **settings):
    plain = make_update(**settings)
    changes = {"optim.schedule": "kl_adaptive", "optim.kl_target": kl_target}
    return Update(with_settings(plain.config, changes), plain.model, plain.device, accelerator, learners=learners)


def kl_over_the_batch(update, batch, before):
    """KL of the policy with the weights `before` to the present one, by the probabilities themselves."""
    after = {name: x.clone() for name, x in update.model.state_dict().items()}
    probabilities = []
    for weights in (before, after):
        update.model.load_state_dict(weights)
        with torch.no_grad():
            params = update.model.unroll(batch.obs, batch.first, batch.state).params[:-1].double()
        probabilities.append(params.softmax(-1)[batch.valid])
    p, q = probabilities
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernels", ["native", "torch", "autograd"])
def test_kl_adaptive_reads_the_kl_of_the_whole_update_over_the_whole_batch(kernels, shape):
    epochs, minibatches = SHAPES[shape]
    update = adaptive(kernels=kernels, epochs=epochs, minibatches=minibatches)
    for number in range(3):
        before = {name: x.clone() for name, x in update.model.state_dict().items()}
        batch = make_batch(update, seed=number)
        metrics = update.run(batch, number, 0.0)
        expected = kl_over_the_batch(update, batch, before)
        assert expected > 1e-5
        assert update.kl == float(metrics[KL_METRIC]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_kl_adaptive_reads_the_kl_of_a_recurrent_policy_from_the_recorded_state_on(core):
    update = adaptive(core=core)
    before = {name: x.clone() for name, x in update.model.state_dict().items()}
    batch = make_batch(update)
    batch = batch._replace(state=torch.randn_like(batch.state))
    update.run(batch, 0, 0.0)
    assert update.kl == pytest.approx(kl_over_the_batch(update, batch, before), rel=1e-3)


def test_kl_of_an_update_in_parts_is_that_of_an_undivided_one(monkeypatch):
    whole, parted = adaptive(minibatches=1), adaptive(minibatches=1)
    batch = make_batch(whole)
    whole.run(batch, 0, 0.0)
    divide_into_parts(monkeypatch, 48)
    parted.run(batch, 0, 0.0)
    assert parted.kl == pytest.approx(whole.kl, rel=1e-4)


def test_kl_adaptive_lowers_and_raises_the_rate_of_updates_with_one_step():
    """The KL before the step would be 0, and the rate would climb to its maximum."""
    rates = {}
    for target in (1e-6, 1e3):
        update = adaptive(kl_target=target, minibatches=1)
        for number in range(4):
            update.run(make_batch(update), number, 0.0)
        rates[target] = update.lr
    assert rates[1e-6] == pytest.approx(1e-2 / 1.5**3)  # the first update uses optim.lr
    assert rates[1e3] == 1e-2  # the largest rate of the schedule


def test_kl_adaptive_lowers_the_rate_after_a_skipped_update():
    """Weights that stayed where they were have a KL of 0, which would raise it."""
    update = adaptive(minibatches=1, kl_target=1.0)
    batch = make_batch(update)
    update.run(batch._replace(reward=torch.full_like(batch.reward, math.nan)), 0, 0.0)
    assert math.isnan(update.kl)
    update.run(batch, 1, 0.0)
    assert update.lr == pytest.approx(1e-2 / 1.5)


def test_kl_adaptive_uses_the_mean_over_learners():
    class Other(SingleLearner):
        def average_metric(self, metric, rows):
            return torch.tensor(7.0)

    update = adaptive(learners=Other())
    update.run(make_batch(update), 0, 0.0)
    assert update.kl == 7.0


def test_kl_of_an_update_is_measured_with_kl_adaptive_only():
    update = make_update()
    assert KL_METRIC not in update.run(make_batch(update), 0, 0.0)


def test_kl_adaptive_of_recorded_updates_reads_the_kl_of_each():
    settings = {"epochs": 2, "kernels": "torch"}
    recorded, plain = adaptive(accelerator=FakeAccelerator(), **settings), adaptive(**settings)
    kept = make_batch(plain)
    for number in range(5):
        batch = make_batch(plain, seed=number)
        for name in ("log_prob", "reward"):
            getattr(kept, name).copy_(getattr(batch, name))
        kept.obs["obs"].copy_(batch.obs["obs"])
        kept.action["action"].copy_(batch.action["action"])
        recorded.run(kept, number, 0.0)
        plain.run(kept, number, 0.0)
        assert recorded.kl == pytest.approx(plain.kl, rel=1e-4)
        assert recorded.lr == pytest.approx(plain.lr)
