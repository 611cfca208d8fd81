"""Updates of learned advantages: their loss against a slow one, and that values and advantages are found."""

import copy
import math

import pytest
import torch
from torch.distributions import Categorical
from update_helpers import ACTIONS, OBS, B, T, divide_into_parts, make_batch

from sfactory.algo.direct_advantage import Backup
from sfactory.config import Config, Model, Normalize, Optim, Run, Sampling, with_settings
from sfactory.envs import EnvSpec
from sfactory.learning.distributed import SingleLearner
from sfactory.learning.network import build_model
from sfactory.learning.objectives import Minibatch
from sfactory.learning.update import Update
from sfactory.monitor.table import meaning
from sfactory.workers.shared import RunSpec

torch.set_num_threads(1)
GAMMA, LAMBDA = 0.9, 0.8


def make(minibatches=4, epochs=1, core="none", separate=False, value_targets=False, learners=None, **settings):
    config = Config(
        run=Run(seed=3),
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(hidden=(16,), core=core, core_size=8 if core != "none" else Model.core_size, separate=separate),
        normalize=Normalize(value_targets=value_targets),
        optim=Optim(lr=1e-2, eps=1e-3),
    )
    given = {
        "batch.minibatches": minibatches,
        "batch.epochs": epochs,
        "trace.gamma": GAMMA,
        "trace.trace_lambda": LAMBDA,
    }
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    config = with_settings(config, {"algorithm.name": "dae", **given})
    model = build_model(config, EnvSpec("test", OBS, ACTIONS))
    return Update(config, model, torch.device("cpu"), learners=learners)


def stale_batch(update, seed=1):
    """A batch of another policy, with a truncation, and numbers on reset rows that must not be read."""
    batch = make_batch(update, seed=seed)
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(T, B, 3, generator=g)
    action = torch.randint(0, 3, (T, B), generator=g)
    log_prob = logits.log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)
    truncated = batch.truncated.clone()
    truncated[3, 1] = True
    return batch._replace(
        action={"action": action},
        log_prob=log_prob.masked_fill(~batch.valid, 0.0),
        params=torch.cat([logits, torch.full_like(logits, math.nan)], -1),
        reward=batch.reward.masked_fill(~batch.valid, 7.0),
        truncated=truncated,
    )


def slow_loss(update, model, batch, start_model, lanes, bootstrap):
    """The loss of a minibatch with sums for every row and action. bootstrap: values [T + 1, B] at the start."""
    config, lanes = update.config, lanes.tolist()
    with torch.no_grad():
        start = start_model.unroll(batch.obs, batch.first, batch.state).params[..., :3].log_softmax(-1)
    out = model.unroll(batch.obs, batch.first, batch.state)
    policy, f = Categorical(logits=out.params[..., :3]), out.params[..., 3:]
    rows = [(t, b) for b in lanes for t in range(T) if batch.valid[t, b]]
    form, clip, total = config.dae.advantages, config.surrogate.clip, 0.0
    advantage = {(t, b): f[t, b] - sum(start[t, b, a].exp() * f[t, b, a] for a in range(3)) for t, b in rows}
    taken = {(t, b): int(batch.action["action"][t, b]) for t, b in rows}
    errors = {}
    for t, b in rows:  # what was received until the end, less the advantages on the way
        error, factor, weight, errors[t, b] = -out.value[t, b], 1.0, 1.0, 0.0
        for s in range(t, T):
            error = error + factor * (batch.reward[s, b] - advantage[s, b][taken[s, b]])
            factor *= GAMMA
            ends = batch.terminated[s, b] or batch.truncated[s, b] or s == T - 1
            known = error if batch.terminated[s, b] else error + factor * bootstrap[s + 1, b]
            errors[t, b] = errors[t, b] + weight * (1.0 if ends else 1.0 - LAMBDA) * known
            if ends:
                break
            weight *= LAMBDA
    with torch.no_grad():
        if form == "returns":
            gains = {row: {taken[row]: advantage[row][taken[row]] + errors[row]} for row in rows}
            square = sum(float(x) ** 2 for row in rows for x in gains[row].values()) / len(rows)
        else:
            every = {row: dict(enumerate(advantage[row])) for row in rows}
            gains = every if form == "all" else {row: {taken[row]: every[row][taken[row]]} for row in rows}
            square = sum(float((start[row].exp() * advantage[row] ** 2).sum()) for row in rows) / len(rows)
    scale = math.sqrt(square) if config.normalize.advantage else 1.0
    for t, b in rows:
        total = total + config.loss.value_coef * errors[t, b] ** 2
        total = total - config.loss.entropy_coef * policy.entropy()[t, b]
        for a, gain in gains[t, b].items():
            ratio, scaled = (policy.logits[t, b, a] - start[t, b, a]).exp(), gain.item() / scale
            behavior = 0.0 if form == "all" else batch.log_prob[t, b]
            clipped = torch.minimum(ratio * scaled, ratio.clamp(1 - clip, 1 + clip) * scaled)
            total = total - (start[t, b, a] - behavior).exp() * clipped
    return total / len(rows)


@pytest.mark.parametrize("advantages", ["returns", "taken", "all"])
@pytest.mark.parametrize(("core", "separate"), [("none", False), ("none", True), ("gru", False)])
def test_loss_and_gradient_are_the_slow_ones(advantages, core, separate):
    update = make(core=core, separate=separate, dae__advantages=advantages, surrogate__clip=0.1)
    batch, model = stale_batch(update), update.model
    if core == "gru":
        batch = batch._replace(state=torch.randn(B, 8, generator=torch.Generator().manual_seed(4)))
    start_model = copy.deepcopy(model)
    with torch.no_grad():
        out = model.unroll(batch.obs, batch.first, batch.state)
    start = update.objective.start(batch, out)
    update.objective.begin_epochs(start)
    with torch.no_grad():  # the policy has moved: ratios on both sides of the clip
        for x in model.parameters():
            x.add_(0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5)))
    lanes = torch.tensor([6, 1, 3])
    inputs = batch.without_last_row().lanes(lanes)
    part = Minibatch(inputs, lanes, model.unroll(inputs.obs, inputs.first, inputs.state))
    loss = update.objective.loss(part, start, True)
    assert 0.2 < loss.diagnostics["losses/clipfrac"] < 0.9
    expected = slow_loss(update, model, batch, start_model, lanes, out.value)
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-6)
    assert update.objective.loss(part, start, False).total == loss.total
    parameters = list(model.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    for got, right in zip(torch.autograd.grad(loss.total, parameters), wanted, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-4, atol=1e-6)
    for name, value in {**loss.losses, **loss.diagnostics}.items():
        assert meaning(name), name
        assert value.dim() == 0
        assert not value.requires_grad


def test_effective_lambda_is_that_of_the_settings():
    """No ratio of policies shortens the trace."""
    update = make()
    assert float(update.run(stale_batch(update), 0, 0.0)["offpolicy/effective_lambda"]) == pytest.approx(LAMBDA)


def test_minibatches_are_whole_lanes_whatever_batch_shuffle_says():
    rows, lanes = make(batch__shuffle="rows"), make(batch__shuffle="lanes")
    assert not rows.by_rows
    batch = stale_batch(rows)
    for update in (rows, lanes):
        assert update.run(batch, 0, 0.0)["skipped"] == 0
    assert torch.equal(rows.flat.values, lanes.flat.values)


@pytest.mark.parametrize("normalize", [True, False])
def test_parts_of_a_minibatch_add_up_to_it(monkeypatch, normalize):
    """With scaled advantages a minibatch is not divided: their scale is that of all its rows."""
    one, two = (make(minibatches=2, normalize__advantage=normalize) for _ in range(2))
    assert one.objective.divisible is not normalize
    batch = stale_batch(one)
    one.run(batch, 0, 0.0)
    divide_into_parts(monkeypatch, 4 * T)
    two.run(batch, 0, 0.0)
    for name, x in one.model.state_dict().items():
        torch.testing.assert_close(x, two.model.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_one_step_per_update_is_that_of_a_phase_with_one_minibatch():
    """The single step trains from the pass that gave the start; two epochs do not."""
    one, two = make(minibatches=1, epochs=1), make(minibatches=1, epochs=2)
    batch, steps = stale_batch(one), []
    two.on_optimizer_step = lambda: steps.append(two.flat.values.clone())
    one.run(batch, 0, 0.0)
    two.run(batch, 0, 0.0)
    torch.testing.assert_close(one.flat.values, steps[0], rtol=0, atol=1e-7)
    assert not torch.equal(steps[0], steps[1])


def test_entropy_bonus_of_dae_moves_to_its_final_weight():
    moved = make(loss__entropy_coef=0.4, loss__entropy_final=0.0)
    fixed, first = make(loss__entropy_coef=0.1), make(loss__entropy_coef=0.4)
    batch = stale_batch(moved)
    for update, progress in ((moved, 0.75), (fixed, 0.0), (first, 0.0)):
        update.run(batch, 0, progress)
    torch.testing.assert_close(moved.flat.values, fixed.flat.values, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(moved.flat.values, first.flat.values, rtol=1e-3, atol=1e-5)


def test_scaled_targets_change_nothing_but_the_units():
    """With the first statistics the head is rescaled; errors in units of reward stay the same."""
    plain, scaled = make(), make(value_targets=True)
    scaled.model.load_state_dict(plain.model.state_dict())
    batch = stale_batch(plain)
    batch = batch._replace(reward=50.0 * batch.reward + 20.0)
    errors = []
    for update in (plain, scaled):
        with torch.no_grad():
            start = update.objective.start(batch, update.model.unroll(batch.obs, batch.first))
            out = update.model.unroll(batch.obs, batch.first)  # after the head moved
        advantage = update.objective._of_action(out.params[:-1], start.log_probs, batch)
        error = update.objective._errors(Backup(start.returns, start.decay), advantage, out.value[:-1], batch)
        errors.append(error * (1.0 if update is plain else update.normalizers.targets.std.float()))
        spread = start.target[batch.valid].std(correction=0)
    torch.testing.assert_close(errors[1], errors[0], rtol=1e-4, atol=1e-3)
    assert spread.item() == pytest.approx(1.0, abs=1e-4)
    assert scaled.normalizers.targets.std > 10


def test_rows_are_those_of_the_agent_s_own_time():
    """Where agents take turns, the errors are those of the rows in the order of the agent's actions."""
    update = make()
    batch = stale_batch(update)
    order = torch.arange(T).view(T, 1).expand(T, B).clone()
    order[:, 1] = torch.tensor([1, 0, 2, 3, 4, 5])
    successor = torch.arange(1, T + 1).view(T, 1).expand(T, B).clone()
    successor[:2, 1] = torch.tensor([2, 0])
    place = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    place[:2] = torch.tensor([1, 0])

    def swapped(x):
        return torch.cat([x[:, :1], x[place[: len(x)], 1:2], x[:, 2:]], 1)

    names = ("reward", "terminated", "truncated", "valid", "log_prob", "params")
    moved = batch._replace(
        obs={"obs": swapped(batch.obs["obs"])},
        action={"action": swapped(batch.action["action"])},
        **{name: swapped(getattr(batch, name)) for name in names},
    )
    results = []
    for rows in (batch._replace(order=order, successor=successor), moved, batch):
        with torch.no_grad():
            start = update.objective.start(rows, update.model.unroll(rows.obs, rows.first))
        update.objective.begin_epochs(start)
        lanes = torch.tensor([2, 1])
        inputs = rows.without_last_row().lanes(lanes)
        out = update.model.unroll(inputs.obs, inputs.first)
        loss = update.objective.loss(Minibatch(inputs, lanes, out), start, False).total
        results.append((start.target, torch.autograd.grad(loss, update.model.advantage_head.weight)[0]))
    torch.testing.assert_close(swapped(results[0][0]), results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(results[0][1], results[2][1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("core", "value_targets"), [("none", False), ("none", True), ("gru", False)])
def test_values_and_advantages_of_the_policy_are_found_from_uniform_actions(core, value_targets):
    """Rewards of the actions alone: A(a) = r(a) - mean r under the policy, from data it did not act."""
    update = make(2, core=core, value_targets=value_targets, trace__gamma=0.5, loss__entropy_coef=1.0, optim__lr=3e-2)
    for number in range(100):
        batch = stale_batch(update, seed=number)
        reward = 2.0 * batch.action["action"].float()
        batch = batch._replace(
            reward=reward,
            terminated=batch.terminated.clone().fill_(False),
            truncated=batch.truncated.clone().fill_(False),
        )
        metrics = update.run(batch, number, 0.0)
        assert metrics["skipped"] == 0
    with torch.no_grad():
        out = update.model.unroll(batch.obs, batch.first, batch.state)
        start = update.objective.start(batch, out)
    scale = 1.0 if update.normalizers.targets is None else float(update.normalizers.targets.std)
    found = scale * update.objective._centered(out.params[:-1], start.log_probs)
    reward = torch.tensor([0.0, 2.0, 4.0])
    mean = (start.log_probs.exp() * reward).sum(-1, keepdim=True)
    assert (mean - 2.0).mean() > 0.5, "the policy is better than the uniform one"
    torch.testing.assert_close(found.mean((0, 1)), (reward - mean).mean((0, 1)), rtol=0, atol=0.3)
    # All steps have that mean reward: V = mean / (1 - gamma), not the 4 of uniform actions.
    value = update.normalizers.value(out.value)
    torch.testing.assert_close(value.mean(), (mean / 0.5).mean(), rtol=0.06, atol=0.0)


class TwoLearners(SingleLearner):
    """The other learner has rows with four times the mean square."""

    def pool_moments(self, moments):
        return [m._replace(mean=(m.mean + 4.0 * m.mean) / 2) for m in moments]


def test_advantages_have_one_scale_on_all_learners():
    one, two = make(), make(learners=TwoLearners())
    batch = stale_batch(one)
    rows = batch.without_last_row()
    scaled = []
    for update in (one, two):
        with torch.no_grad():
            start = update.objective.start(batch, update.model.unroll(batch.obs, batch.first))
            part = Minibatch(rows, None, update.model.unroll(rows.obs, rows.first))
            scaled.append(update.objective._start_of(part, start).advantage)
    torch.testing.assert_close(scaled[1] * math.sqrt(2.5), scaled[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["recompute", "ewma", "behavior", "snapshot"])
@pytest.mark.parametrize("advantages", ["returns", "taken", "all"])
def test_every_proximal_policy_with_a_distribution_can_be_the_center(policy, advantages):
    update = make(epochs=2, dae__advantages=advantages, proximal__policy=policy)
    for number in range(2):
        batch = stale_batch(update, seed=number)
        assert update.run(batch._replace(params=batch.params.nan_to_num()), number, 0.0)["skipped"] == 0


def test_slots_hold_the_columns_of_the_network():
    update = make()
    run_spec = RunSpec(update.config, EnvSpec("test", OBS, ACTIONS), "unused", 0)
    assert run_spec.schema.num_params == update.model.distribution.num_params == 6
