"""One update: minibatches, normalized value targets, updates that are not finite, saved state."""

import math

import pytest
import torch
from update_helpers import ACTIONS, B, T, make_batch, make_update

from sfactory.algo.normalize import TargetScale
from sfactory.config import BatchConfig, Config, Sampling
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning import parts
from sfactory.learning.objectives import Minibatch
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic
from sfactory.run import checkpoint
from sfactory.run.checkpoint_writer import save

torch.set_num_threads(1)


def minibatch_observations(update, batch, monkeypatch):
    """Observations of every minibatch of one update, [(T', b, 4)]."""
    seen = []
    inner = update.objective.loss

    def spy(part, *rest):
        seen.append(part.batch.obs["obs"].clone())
        return inner(part, *rest)

    monkeypatch.setattr(update.objective, "loss", spy)
    update.run(batch, 0, 0.0)
    return seen


@pytest.mark.parametrize("epochs", [1, 3])
def test_minibatches_of_rows_hold_every_row_once_per_epoch_and_mix_lanes(monkeypatch, epochs):
    update = make_update(epochs=epochs)
    batch = make_batch(update)
    seen = minibatch_observations(update, batch, monkeypatch)
    assert [tuple(x.shape) for x in seen] == [(1, T * B // 4, 4)] * 4 * epochs
    rows_of_batch = batch.obs["obs"][:-1].flatten(0, 1)
    for epoch in range(epochs):
        rows = torch.cat([x[0] for x in seen[4 * epoch : 4 * epoch + 4]])
        assert sorted(rows[:, 0].tolist()) == sorted(rows_of_batch[:, 0].tolist())
    lane = {value: i % B for i, value in enumerate(rows_of_batch[:, 0].tolist())}
    assert len({lane[value] for value in seen[0][0, :, 0].tolist()}) > B // 4


@pytest.mark.parametrize("settings", [{"shuffle": "lanes"}, {"core": "gru"}, {"core": "lstm", "shuffle": "rows"}])
def test_minibatches_hold_whole_lanes_for_recurrent_policies_and_with_shuffle_lanes(monkeypatch, settings):
    update = make_update(**settings)
    batch = make_batch(update)
    seen = minibatch_observations(update, batch, monkeypatch)
    assert [tuple(x.shape) for x in seen] == [(T, B // 4, 4)] * 4
    lanes = {tuple(batch.obs["obs"][:-1, b, 0].tolist()) for b in range(B)}
    assert {tuple(x[:, b, 0].tolist()) for x in seen for b in range(B // 4)} == lanes


def test_update_with_one_minibatch_is_the_same_by_rows_and_by_lanes():
    """With one minibatch nothing is shuffled: no loss may depend on the order of the rows."""
    weights = []
    for shuffle in ("rows", "lanes"):
        update = make_update(epochs=2, minibatches=1, shuffle=shuffle, trace="vtrace")
        update.run(make_batch(update), 0, 0.0)
        weights.append(torch.cat([p.detach().flatten() for p in update.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("minibatches", [1, 4])
def test_update_with_normalized_targets_learns_the_same_value_from_rewards_of_any_scale(minibatches):
    """Rewards a thousand times larger: the loss of the value head stays near 1, its value grows a thousandfold."""
    losses, values = {}, {}
    for scale in (1.0, 1000.0):
        update = make_update(value_targets=True, minibatches=minibatches)
        for k in range(60):
            stats = update.run(make_batch(update, scale), k, 0.0)
        batch = make_batch(update, scale)
        with torch.no_grad():
            output = update.model.unroll(batch.obs, batch.first, None).value
        losses[scale], values[scale] = float(stats["losses/value_loss"]), update.normalizers.value(output)
    assert losses[1000.0] < 2.0
    ratio = float(values[1000.0].abs().mean() / values[1.0].abs().mean())
    assert 300 < ratio < 10_000
    raw = make_update(value_targets=False, minibatches=minibatches)
    assert float(raw.run(make_batch(raw, 1000.0), 0, 0.0)["losses/value_loss"]) > 1e4


def test_start_of_an_update_has_value_and_target_in_the_units_of_the_head_after_it_moved():
    update = make_update(value_targets=True, advantage=False)
    update.run(make_batch(update, 50.0), 0, 0.0)
    batch = make_batch(update, 90.0)
    with torch.no_grad():
        value = update.normalizers.value(update.model.unroll(batch.obs, batch.first, None).value[:-1])
        start = update.objective.start(batch, update.model.unroll(batch.obs, batch.first, None))
        output = update.model.unroll(batch.obs, batch.first, None).value[:-1]
    torch.testing.assert_close(start.value, output, rtol=1e-4, atol=1e-5)
    scale = update.normalizers.targets
    torch.testing.assert_close(scale.value(start.value), value, rtol=1e-4, atol=1e-4)
    # On valid rows GAE's advantage plus the value in units of reward is the target.
    target = scale.value(start.target)
    torch.testing.assert_close(target[batch.valid], (start.advantage + value)[batch.valid], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value_targets", [False, True])
def test_update_skips_a_batch_that_is_not_finite(value_targets):
    """Weights and statistics stay finite, and the next finite batch is trained on."""
    update = make_update(value_targets=value_targets)
    update.run(make_batch(update), 0, 0.0)
    before = {name: tensor.clone() for part in update.state_dict().values() for name, tensor in part.items()}
    broken = make_batch(update)
    stats = update.run(broken._replace(reward=torch.full_like(broken.reward, 3e38)), 1, 0.0)
    assert stats["skipped"] > 0
    for part, tensors in update.state_dict().items():
        for name, tensor in tensors.items():
            assert torch.isfinite(tensor).all(), f"{part} {name}"
            if part == "normalizers":
                torch.testing.assert_close(tensor, before[name], rtol=0.02, atol=1e-6)
    stats = update.run(make_batch(update), 2, 0.0)
    assert stats["skipped"] == 0


def test_update_skips_a_step_whose_gradient_is_finite_and_whose_norm_is_not():
    update = make_update(advantage=False, minibatches=1)
    batch, before = make_batch(update), update.flat.values.clone()
    stats = update.run(batch._replace(reward=1e25 * batch.reward), 0, 0.0)
    assert float(stats["losses/grad_norm"]) == float("inf")
    assert stats["skipped"] == 1
    assert torch.equal(update.flat.values, before)


def test_target_scale_ignores_a_batch_without_valid_rows():
    scale = TargetScale()
    factor, shift = scale.update(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert (float(factor), float(shift)) == (1.0, 0.0)


def test_skipped_batch_is_not_added_to_the_normalizers():
    """Neither its observations nor its returns are counted."""
    update = make_update(normalize=True)
    clean = make_batch(update)._replace(discounted_return=torch.ones(T, B))
    update.run(clean, 0, 0.0)
    before = {name: x.clone() for name, x in update.state_dict()["normalizers"].items() if "advantage" not in name}
    rows = int(clean.valid.sum())
    assert (before["obs.obs.count"], before["reward.count"]) == (rows, rows)
    broken = clean._replace(log_prob=torch.full_like(clean.log_prob, torch.nan))
    assert update.run(broken, 1, 0.0)["skipped"] > 0
    for name, tensor in before.items():
        assert torch.equal(update.state_dict()["normalizers"][name], tensor), name
    update.run(clean, 2, 0.0)
    assert update.state_dict()["normalizers"]["obs.obs.count"] == 2 * rows


def test_restored_optimizer_continues_to_the_bit(tmp_path):
    """Convolutions are channels-last in memory but not in files: fused Adam would silently mix up the two orders."""
    torch.manual_seed(0)
    leaf = {"obs": Leaf((4, 36, 36), "uint8")}
    config = Config(batch=BatchConfig(epochs=2, minibatches=2), sampling=Sampling(1, 2, B // 2, T))

    def fresh():
        torch.manual_seed(0)
        return Update(config, ActorCritic(leaf, ACTIONS, encoder="nature", hidden=(8,)), torch.device("cpu"))

    one, other = fresh(), fresh()
    frames = torch.randint(0, 256, (T + 1, B, 4, 36, 36), dtype=torch.uint8)
    batch = make_batch(make_update())._replace(obs={"obs": frames})
    one.run(batch, 0, 0.0)
    contents = checkpoint.Contents({"env_steps": 1}, one.state_dict())
    other.load_state_dict(checkpoint.read(save(tmp_path, contents, keep=1), checkpoint.PARTS).parts)
    for update in (one, other):
        update.run(batch, 1, 0.0)
    for (name, x), y in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("before", ["ewma", "snapshot", "recompute"])
@pytest.mark.parametrize("after", ["ewma", "snapshot", "recompute"])
def test_restored_update_may_change_the_proximal_policy_which_then_starts_at_the_weights(before, after):
    one, other = make_update(proximal=before, snapshot_age=2), make_update(proximal=after, snapshot_age=2)
    batch = make_batch(one)
    for number in range(3):
        one.run(batch, number, 0.0)
    other.load_state_dict(one.state_dict())
    if before == after:
        assert {n: x.tolist() for n, x in other.objective.proximal.state_dict().items()} == {
            n: x.tolist() for n, x in one.objective.proximal.state_dict().items()
        }
    elif after == "ewma":
        for name, x in other.objective.proximal.weights.items():
            assert torch.equal(x, dict(one.model.named_parameters())[name])
    other.run(batch, 3, 0.0)


BOX = {"action": ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0))}
BY_FORMULA = {
    "rows": {},
    "lanes": {"shuffle": "lanes"},
    "gru": {"core": "gru"},
    "one pass": {"minibatches": 1},
    "whole batches": {"epochs": 3, "minibatches": 1},
    "box": {"actions": BOX},
    "dual clip and value clip": {"dual_clip": 1.5, "value_clip": 0.1, "value_targets": True},
    "around behavior": {"proximal": "behavior", "surrogate": "ppo"},
    "weight in the trace": {"behavior_weight": "trace", "trace": "vtrace"},
    "no weight, ewma": {"behavior_weight": "none", "proximal": "ewma"},
    "interpolate": {"proximal": "interpolate"},
    "snapshot": {"proximal": "snapshot", "snapshot_age": 0},
}


@pytest.mark.parametrize("case", BY_FORMULA)
def test_update_by_formula_learns_what_autograd_learns(case):
    """On data that is two updates old, so that no ratio is 1."""
    updates = [make_update(kernels=kernels, **BY_FORMULA[case]) for kernels in ("torch", "autograd")]
    assert [update.objective.by_formula for update in updates] == [True, False]
    batch = make_batch(updates[0])
    batch = batch._replace(log_prob=batch.log_prob - 0.1 * batch.valid * torch.rand(T, B), lag=torch.full((T, B), 2.0))
    metrics = [[update.run(batch, number, 0.0) for number in range(3)][-1] for update in updates]
    mine, theirs = ({f"{p}/{n}": x for p, part in u.state_dict().items() for n, x in part.items()} for u in updates)
    assert mine.keys() == theirs.keys()
    for name, x in mine.items():
        torch.testing.assert_close(x, theirs[name], rtol=1e-3, atol=1e-5, msg=name)
    for name, x in metrics[0].items():
        torch.testing.assert_close(x, metrics[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_update_with_kernels_autograd_takes_the_steps_of_plain_torch_to_the_bit():
    mine, other = (make_update(kernels="autograd", minibatches=1, hidden=(99, 64)) for _ in range(2))
    weights = [torch.nn.Parameter(x.detach().clone()) for x in other.model.parameters()]
    adam = torch.optim.Adam(weights, lr=1e-2, eps=other.config.optim.eps, fused=True)
    for seed in range(4):
        batch = make_batch(other, seed=seed)
        out = other.model.unroll(batch.obs, batch.first)
        part = Minibatch(batch, None, out._replace(params=out.params[:-1], value=out.value[:-1]))
        start = other.objective.start(batch, out)
        other.objective.begin_epochs(start)
        loss = other.objective.loss(part, start, False)
        for weight, gradient in zip(weights, torch.autograd.grad(loss.total, other.parameters), strict=True):
            weight.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(weights, 0.5)
        adam.step()
        with torch.no_grad():
            for x, weight in zip(other.parameters, weights, strict=True):
                x.copy_(weight)
        assert torch.equal(mine.run(batch, seed, 0.0)["losses/grad_norm"], norm)
        assert all(torch.equal(x, weight) for x, weight in zip(mine.parameters, weights, strict=True))


def test_update_differentiates_what_has_no_formula():
    bounded = {"actions": BOX, "squash": True}
    for settings in ({"surrogate": "cispo"}, {"surrogate": "decoupled_kl"}, bounded):
        update = make_update(kernels="auto", **settings)
        assert not update.objective.by_formula
        assert update.run(make_batch(update), 0, 0.0)["skipped"] == 0


@pytest.mark.parametrize("kernels", ["torch", "autograd"])
@pytest.mark.parametrize("most", [None, 2 * 4])
def test_update_skips_a_step_whose_loss_is_nan_and_whose_gradient_is_finite(kernels, most, monkeypatch):
    """The clamp of sapo has the gradient 0 where the ratio is NaN. most: numbers of a part; None: undivided."""
    monkeypatch.setattr(parts, "most_numbers", lambda device: most)
    update = make_update(surrogate="sapo", proximal="behavior", kernels=kernels, minibatches=2, epochs=2)
    update.run(make_batch(update), 0, 0.0)
    before = update.flat.values.clone()
    batch = make_batch(update)
    assert batch.valid[4, 1]
    log_prob = batch.log_prob.clone()
    log_prob[4, 1] = math.nan
    stats = update.run(batch._replace(log_prob=log_prob), 1, 0.0)
    assert stats["skipped"] == 2, "one of the two minibatches, in both epochs"
    assert torch.isfinite(update.flat.values).all()
    assert not torch.equal(update.flat.values, before), "the other minibatch is trained on"
    assert update.run(make_batch(update), 2, 0.0)["skipped"] == 0
