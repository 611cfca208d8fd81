"""One update: what a minibatch is drawn from, and what normalised targets change."""

import numpy as np
import pytest
import torch

from sfactory.config import BatchConfig, Config, Model, Normalize, Optim, Sampling, with_settings
from sfactory.envs import ActionLeaf, Leaf
from sfactory.learning.batch import Batch
from sfactory.learning.update import Update
from sfactory.model.actor_critic import ActorCritic
from sfactory.run import checkpoint

torch.set_num_threads(1)
T, B = 6, 8
ACTIONS = {"action": ActionLeaf((), "int64", "discrete", (3,))}
OBS = {"obs": Leaf((4,), "float32")}


def update_of(core="none", value_targets=False, normalize=False, **learning):
    config = Config(
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(hidden=(16,), core=core, core_size=8),
        normalize=Normalize(value_targets=value_targets, obs=normalize, reward=normalize),
        optim=Optim(lr=1e-2),
    )
    learning = {"epochs": 1, "minibatches": 4, **learning}
    config = with_settings(config, {f"learning.{name}": value for name, value in learning.items()})
    torch.manual_seed(0)
    core_size = 8 if core != "none" else 0
    model = ActorCritic(OBS, ACTIONS, hidden=(16,), core=core, core_size=core_size, normalize_obs=normalize)
    return Update(config, model, torch.device("cpu"))


def batch_of(update, reward_scale=1.0):
    g = torch.Generator().manual_seed(1)
    first = torch.zeros(T + 1, B, dtype=torch.bool)
    first[3, ::2] = True
    terminated = torch.zeros(T, B, dtype=torch.bool)
    terminated[1, ::2] = True
    valid = torch.ones(T, B, dtype=torch.bool)
    valid[2, ::2] = False
    obs, state = {"obs": torch.randn(T + 1, B, 4, generator=g)}, None
    if update.model.state_size:
        state = torch.zeros(B, update.model.state_size)
    with torch.no_grad():
        params = update.model.unroll(obs, first, state).params[:-1]
    action = update.distribution.sample(params, torch.rand(T, B, 1, generator=g))
    return Batch(
        obs, first, action, update.distribution.log_prob(params, action).masked_fill(~valid, 0.0), params,
        (reward_scale * torch.randn(T, B, generator=g)).masked_fill(~valid, 0.0), terminated,
        torch.zeros_like(terminated), valid, torch.zeros(T, B), state, None,
    )  # fmt: skip


def drawn(update, batch, monkeypatch):
    """Observations of every minibatch of one update, [(T', b, 4)]."""
    seen = []
    inner = update._minibatch

    def spy(part, *rest, **named):
        seen.append(part.obs["obs"].clone())
        return inner(part, *rest, **named)

    monkeypatch.setattr(update, "_minibatch", spy)
    update.run(batch, 0, 0.0)
    return seen


@pytest.mark.parametrize("epochs", [1, 3])
def test_minibatches_of_rows_hold_every_row_once_per_epoch_and_mix_lanes(monkeypatch, epochs):
    update = update_of(epochs=epochs)
    batch = batch_of(update)
    seen = drawn(update, batch, monkeypatch)
    assert [tuple(x.shape) for x in seen] == [(1, T * B // 4, 4)] * 4 * epochs
    whole = batch.obs["obs"][:-1].flatten(0, 1)
    for epoch in range(epochs):
        rows = torch.cat([x[0] for x in seen[4 * epoch : 4 * epoch + 4]])
        assert sorted(rows[:, 0].tolist()) == sorted(whole[:, 0].tolist())
    lane = {value: i % B for i, value in enumerate(whole[:, 0].tolist())}
    assert len({lane[value] for value in seen[0][0, :, 0].tolist()}) > B // 4


@pytest.mark.parametrize("settings", [{"shuffle": "lanes"}, {"core": "gru"}, {"core": "lstm", "shuffle": "rows"}])
def test_memory_and_whoever_asks_for_it_get_whole_lanes(monkeypatch, settings):
    update = update_of(**settings)
    batch = batch_of(update)
    seen = drawn(update, batch, monkeypatch)
    assert [tuple(x.shape) for x in seen] == [(T, B // 4, 4)] * 4
    lanes = {tuple(batch.obs["obs"][:-1, b, 0].tolist()) for b in range(B)}
    assert {tuple(x[:, b, 0].tolist()) for x in seen for b in range(B // 4)} == lanes


def test_the_whole_batch_is_the_same_step_by_rows_and_by_lanes():
    """With one minibatch nothing is drawn: the order of rows must not matter to any of the losses."""
    weights = []
    for shuffle in ("rows", "lanes"):
        update = update_of(epochs=2, minibatches=1, shuffle=shuffle, trace="vtrace")
        update.run(batch_of(update), 0, 0.0)
        weights.append(torch.cat([p.detach().flatten() for p in update.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("minibatches", [1, 4])
def test_normalised_targets_learn_the_same_value_from_rewards_of_any_size(minibatches):
    """Rewards a thousand times larger: the head's own loss stays near 1, and what it means grows a thousandfold."""
    losses, values = {}, {}
    for scale in (1.0, 1000.0):
        update = update_of(value_targets=True, minibatches=minibatches)
        for k in range(60):
            stats = update.run(batch_of(update, scale), k, 0.0)
        batch = batch_of(update, scale)
        with torch.no_grad():
            said = update.model.unroll(batch.obs, batch.first, None).value
        losses[scale], values[scale] = float(stats["losses/value_loss"]), update.target_scale.value(said)
    assert losses[1000.0] < 2.0
    ratio = float(values[1000.0].abs().mean() / values[1.0].abs().mean())
    assert 300 < ratio < 10_000
    raw = update_of(value_targets=False, minibatches=minibatches)
    assert float(raw.run(batch_of(raw, 1000.0), 0, 0.0)["losses/value_loss"]) > 1e4


def test_the_value_an_update_starts_from_is_in_units_of_reward():
    update = update_of(value_targets=True)
    update.run(batch_of(update, 50.0), 0, 0.0)
    batch = batch_of(update, 50.0)
    with torch.no_grad():
        out = update.model.unroll(batch.obs, batch.first, None)
        start = update._start(batch, out, update.distribution.log_prob(out.params[:-1], batch.action))
    scale = update.target_scale
    np.testing.assert_allclose(start.target, (start.trace.target - scale.mean) / scale.std, rtol=1e-5, atol=1e-6)
    # On rows that were valid and ended nothing, GAE's advantage plus the value in reward units is the target.
    value = scale.value(out.value[:-1])
    torch.testing.assert_close(
        start.trace.target[batch.valid], (start.trace.advantage + value)[batch.valid], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("value_targets", [False, True])
def test_one_batch_that_is_not_finite_leaves_no_trace(value_targets):
    """It is skipped; the next clean batch is learnt from, with statistics and weights that are finite."""
    update = update_of(value_targets=value_targets)
    update.run(batch_of(update), 0, 0.0)
    before = {name: tensor.clone() for part in update.state_dict().values() for name, tensor in part.items()}
    broken = batch_of(update)
    stats = update.run(broken._replace(reward=torch.full_like(broken.reward, 3e38)), 1, 0.0)
    assert stats["skipped"] > 0
    for part, tensors in update.state_dict().items():
        for name, tensor in tensors.items():
            assert torch.isfinite(tensor).all(), f"{part} {name}"
            if part == "normalizers":
                torch.testing.assert_close(tensor, before[name], rtol=0.02, atol=1e-6)
    stats = update.run(batch_of(update), 2, 0.0)
    assert stats["skipped"] == 0


def test_a_target_scale_that_saw_no_valid_row_changes_nothing():
    from sfactory.algo.normalize import TargetScale

    scale = TargetScale()
    factor, shift = scale.update(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert (float(factor), float(shift)) == (1.0, 0.0)


def test_a_batch_that_was_not_learnt_from_is_in_no_statistics():
    """Its rewards are what broke it; its observations and returns must not count either."""
    update = update_of(normalize=True)
    clean = batch_of(update)._replace(discounted_return=torch.ones(T, B))
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


def test_an_optimizer_that_was_saved_goes_on_as_if_it_had_not_been(tmp_path):
    """Convolutions lie channels-last in memory, files do not: fused Adam would mix the two up without a word."""
    torch.manual_seed(0)
    leaf = {"obs": Leaf((4, 36, 36), "uint8")}
    config = Config(batch=BatchConfig(epochs=2, minibatches=2), sampling=Sampling(1, 2, B // 2, T))

    def fresh():
        torch.manual_seed(0)
        return Update(config, ActorCritic(leaf, ACTIONS, encoder="nature", hidden=(8,)), torch.device("cpu"))

    one, other = fresh(), fresh()
    pictures = torch.randint(0, 256, (T + 1, B, 4, 36, 36), dtype=torch.uint8)
    batch = batch_of(update_of())._replace(obs={"obs": pictures})
    one.run(batch, 0, 0.0)
    contents = checkpoint.Contents({"env_steps": 1}, one.state_dict())
    other.load_state_dict(checkpoint.load(checkpoint.save(tmp_path, contents, keep=1)).parts)
    for update in (one, other):
        update.run(batch, 1, 0.0)
    for (name, x), y in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("before", ["ewma", "snapshot", "recompute"])
@pytest.mark.parametrize("after", ["ewma", "snapshot", "recompute"])
def test_a_resume_may_change_the_proximal_policy_which_then_begins_at_the_weights(before, after):
    one, other = update_of(proximal=before, snapshot_age=2), update_of(proximal=after, snapshot_age=2)
    batch = batch_of(one)
    for number in range(3):
        one.run(batch, number, 0.0)
    other.load_state_dict(one.state_dict())
    if before == after:
        assert {n: x.tolist() for n, x in other.proximal.state_dict().items()} == {
            n: x.tolist() for n, x in one.proximal.state_dict().items()
        }
    elif after == "ewma":
        for name, x in other.proximal.weights.items():
            assert torch.equal(x, dict(one.model.named_parameters())[name])
    other.run(batch, 3, 0.0)
