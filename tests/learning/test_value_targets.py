"""Normalized value targets (PopArt): statistics and head move before the targets of an update are made."""

import pytest
import torch
from update_helpers import make_batch, make_update

torch.set_num_threads(1)
KERNELS = ["native", "torch", "autograd"]


def value_in_reward_units(update, batch):
    with torch.no_grad():
        return update.normalizers.value(update.model.unroll(batch.obs, batch.first, None).value)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("minibatches", [1, 4])
def test_update_with_normalized_targets_has_an_ordinary_gradient_when_a_reward_follows_many_without(
    kernels, minibatches
):
    """The standard deviation of the targets is next to nothing then, and the first target is not divided by it."""
    settings = {"gamma": 0.0, "advantage": False, "max_grad_norm": 0.0}
    update = make_update(value_targets=True, minibatches=minibatches, kernels=kernels, **settings)
    for number in range(50):
        update.run(make_batch(update, 0.0), number, 0.0)
    assert update.normalizers.targets.std < 1e-3
    batch = make_batch(update, 0.0)
    batch.reward[0, 1] = 1.0
    metrics = update.run(batch, 50, 0.0)
    # 1 / (1 - decay) is the largest mean square of a batch in units of an average that includes it.
    assert metrics["losses/value_loss"] < 100.0 * minibatches
    assert metrics["losses/grad_norm"] < 1000.0


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("minibatches", [1, 4])
def test_normalized_targets_of_an_update_belong_to_statistics_with_its_own_targets(kernels, minibatches, monkeypatch):
    update = make_update(value_targets=True, minibatches=minibatches, kernels=kernels)
    starts, start, sums = [], update.objective.start, 0.0
    monkeypatch.setattr(update.objective, "start", lambda *given: starts.append(start(*given)) or starts[-1])
    for number, scale in enumerate((1.0, 300.0, 0.01)):
        update.run(make_batch(update, scale), number, 0.0)
        batch, found = make_batch(update, scale), starts[-1]
        target = found.target[batch.valid].double()
        mean, std = update.normalizers.targets.mean, update.normalizers.targets.std
        in_units_of_reward = target * std + mean
        moments = torch.stack([torch.ones_like(mean), in_units_of_reward.mean(), in_units_of_reward.square().mean()])
        sums = 0.99 * sums + moments
        torch.testing.assert_close(mean, sums[1] / sums[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(std, (sums[2] / sums[0] - mean.square()).sqrt(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernels", KERNELS)
def test_start_of_an_update_with_normalized_targets_keeps_every_value_in_units_of_reward(kernels):
    update = make_update(value_targets=True, kernels=kernels)
    for number, scale in enumerate((1.0, 1e4)):
        batch = make_batch(update, scale)
        before = value_in_reward_units(update, batch)
        with torch.no_grad():
            update.objective.start(batch, update.model.unroll(batch.obs, batch.first, None))
        torch.testing.assert_close(value_in_reward_units(update, batch), before, rtol=1e-3, atol=1e-3)
        update.run(batch, number, 0.0)
