"""A value that is the expectation over bins, in whole updates; `test_reference_update` has their slow twin."""

import pytest
import torch
from update_helpers import B, T, make_batch, make_update

from sfactory.config import with_settings
from sfactory.learning.objectives.actor_critic import value_bins
from sfactory.monitor.table import OF_WHOLE_UPDATE, meaning
from sfactory.native.choice import why_not_native

torch.set_num_threads(1)
OUTSIDE = "losses/value_outside"


def make(**settings):
    return make_update(value_head="hl_gauss", **settings)


@pytest.mark.parametrize("kernels", ["torch", "autograd", "auto"])
def test_network_with_bins_is_trained_by_torch_and_differentiated(kernels):
    update = make(kernels=kernels)
    assert not update.objective.by_formula
    assert update.objective.native_loss is None
    before = update.model.value_head.weight.clone()
    assert update.run(make_batch(update), 0, 0.0)["skipped"] == 0
    assert (update.model.value_head.weight != before).any(1).all(), "every bin has a gradient"
    if kernels == "auto":
        assert "a value head with bins" in why_not_native(update.config, update.model, torch.device("cpu"), "fp32")


@pytest.mark.sampled(2)  # both cores and divisions; normalized targets have tests of their own below
@pytest.mark.parametrize(
    ("core", "minibatches", "targets"), [("none", 4, False), ("none", 1, True), ("gru", 1, False), ("gru", 4, True)]
)
def test_value_with_bins_is_that_of_constant_rewards(core, minibatches, targets):
    """V = reward / (1 - gamma) = 6, without ends of episodes."""
    update = make(core=core, minibatches=minibatches, epochs=4, value_targets=targets, gamma=0.5, entropy_coef=0.0)
    for number in range(60):
        batch = make_batch(update, seed=number)
        batch = batch._replace(reward=torch.full((T, B), 3.0), terminated=torch.zeros(T, B, dtype=torch.bool))
        metrics = update.run(batch._replace(valid=torch.ones(T, B, dtype=torch.bool)), number, 0.0)
        assert metrics["skipped"] == 0
    with torch.no_grad():
        out = update.model.unroll(batch.obs, batch.first, batch.state)
    value = update.normalizers.value(out.value)
    torch.testing.assert_close(value, torch.full_like(value, 6.0), rtol=0, atol=0.4)
    assert 1.15 < metrics["losses/value_loss"] < 3.0, "nats: at least the entropy of the targets"


def test_share_of_targets_outside_the_bins_is_that_of_the_whole_update():
    update = make(model__value_low=-1.0, model__value_high=0.5, epochs=2)
    batch, starts, start = make_batch(update, 2.0), [], update.objective.start
    update.objective.start = lambda *given: starts.append(start(*given)) or starts[-1]
    metrics = update.run(batch, 0, 0.0)
    target = starts[0].target[batch.valid]
    expected = float(((target < -1.0) | (target > 0.5)).float().mean())
    assert 0.1 < expected < 0.9
    assert metrics[OUTSIDE].item() == pytest.approx(expected)
    assert OUTSIDE in OF_WHOLE_UPDATE
    assert meaning(OUTSIDE)
    assert OUTSIDE not in make_update().run(batch, 0, 0.0)


def test_rewards_of_any_scale_are_inside_the_bins_with_normalized_targets():
    for scale in (1e-3, 1e3):
        update = make(value_targets=True)
        for number in range(5):
            metrics = update.run(make_batch(update, scale, seed=number), number, 0.0)
        assert metrics[OUTSIDE] == 0
        assert metrics["skipped"] == 0
    update = make()
    assert update.run(make_batch(update, 1e3), 0, 0.0)[OUTSIDE] > 0.9


@pytest.mark.parametrize("minibatches", [1, 4])
def test_statistics_of_targets_leave_a_head_with_bins_as_it_is(minibatches):
    """Its bins are those of normalized targets, so one forward pass is enough for the start and the gradient."""
    update = make(value_targets=True, minibatches=minibatches)
    assert not update.normalizers.moves_value_head
    assert make_update(value_targets=True).normalizers.moves_value_head
    batch = make_batch(update, 50.0)
    before = {name: x.clone() for name, x in update.model.state_dict().items()}
    with torch.no_grad():
        start = update.objective.start(batch, update.model.unroll(batch.obs, batch.first))
    for name, x in update.model.state_dict().items():
        assert torch.equal(x, before[name]), name
    assert update.normalizers.targets.std > 10
    target = start.target[batch.valid]
    assert (target.mean().item(), target.std(correction=0).item()) == pytest.approx((0.0, 1.0), abs=1e-4)


def test_one_step_per_update_with_bins_is_that_of_a_phase_with_one_minibatch():
    one, two = make(minibatches=1, value_targets=True), make(minibatches=1, epochs=2, value_targets=True)
    batch, steps = make_batch(one, 5.0), []
    two.on_optimizer_step = lambda: steps.append(two.flat.values.clone())
    one.run(batch, 0, 0.0)
    two.run(batch, 0, 0.0)
    torch.testing.assert_close(one.flat.values, steps[0], rtol=0, atol=1e-7)
    assert not torch.equal(steps[0], steps[1])


@pytest.mark.parametrize("head", ["scalar", "hl_gauss"])
@pytest.mark.parametrize("targets", [False, True])
def test_action_value_of_bpo_is_the_advantage_above_the_value_of_the_same_head(head, targets):
    """A head with bins stays where it is when the statistics of targets move: so does what it is compared with."""
    settings = {"surrogate": "bpo", "surrogate__median_head": False, "value_targets": targets, "minibatches": 1}
    update = make_update(value_head=head, **settings)
    objective, inputs, batch = update.objective, [], make_batch(update)
    batch = batch._replace(reward=(batch.reward + 3.0).masked_fill(~batch.valid, 0.0))
    surrogate = objective._surrogate
    objective._surrogate = lambda x: inputs.append(x) or surrogate(x)
    value = update.model.unroll(batch.obs, batch.first).value.detach()
    advantage = objective._estimate(objective._rows(batch, value, torch.zeros(T, B))).advantage
    update.run(batch, 0, 0.0)
    std = update.normalizers.targets.std.float() if targets else 1.0
    gap = (inputs[0].action_value - inputs[0].value.detach()).view(T, B)
    torch.testing.assert_close(gap[batch.valid], (advantage / std)[batch.valid], rtol=1e-4, atol=1e-4)


def test_bins_of_a_network_are_those_of_the_settings():
    config = make_update().config
    assert value_bins(config) is None
    changes = {"model.value_head": "hl_gauss", "model.value_bins": 21, "model.value_low": -2.0, "model.value_high": 5.0}
    assert value_bins(with_settings(config, changes)) == (-2.0, 5.0, 21)
