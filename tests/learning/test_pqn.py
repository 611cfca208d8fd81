"""Updates of action values: targets, loss and epsilon, and that they learn."""

import math

import pytest
import torch
from update_helpers import ACTIONS, OBS, B, T, divide_into_parts, make_batch

from sfactory.config import (
    AlgorithmConfig,
    BatchConfig,
    Config,
    Env,
    Model,
    Optim,
    PqnConfig,
    Run,
    Sampling,
    Stop,
    TraceConfig,
)
from sfactory.envs import EnvSpec
from sfactory.learning.batch import Batch
from sfactory.learning.network import build_model
from sfactory.learning.objectives import Minibatch
from sfactory.learning.objectives.pqn import epsilon
from sfactory.learning.update import Update
from sfactory.monitor.table import meaning

torch.set_num_threads(1)


def make(minibatches=4, epochs=1, core="none", lam=0.65, gamma=0.9, reward_scale=1.0, pqn=None, lr=1e-2):
    config = Config(
        run=Run(seed=3),
        stop=Stop(env_steps=1000),
        env=Env(reward_scale=reward_scale),
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        batch=BatchConfig(epochs=epochs, minibatches=minibatches),
        algorithm=AlgorithmConfig("pqn"),
        pqn=pqn or PqnConfig(),
        trace=TraceConfig(gamma=gamma, trace_lambda=lam),
        optim=Optim(lr=lr),
        model=Model(hidden=(16,), layer_norm=True, core=core, core_size=8 if core != "none" else Model.core_size),
    )
    return Update(config, build_model(config, EnvSpec("test", OBS, ACTIONS)), torch.device("cpu"))


def slow_targets(update, batch, gamma, lam):
    """The recursion of the paper, row by row, with this project's ends of episodes."""
    with torch.no_grad():
        best = update.model.unroll(batch.obs, batch.first, batch.state).params[..., :-1].max(-1).values
    target = best[:-1].clone()
    for b in range(B):
        later = None  # G of the next row, None: the trace is cut
        for t in reversed(range(T)):
            if not batch.valid[t, b]:
                later = None
                continue
            if batch.terminated[t, b]:
                value = 0.0
            elif batch.truncated[t, b] or later is None:
                value = best[t + 1, b]
            else:
                value = (1 - lam) * best[t + 1, b] + lam * later
            later = target[t, b] = update.config.env.reward_scale * batch.reward[t, b] + gamma * value
    return target


def with_truncation(batch: Batch) -> Batch:
    truncated = batch.truncated.clone()
    truncated[3, 1] = True
    return batch._replace(truncated=truncated)


@pytest.mark.parametrize("core", ["none", "gru"])
def test_start_has_the_targets_of_the_paper_with_values_of_the_present_network(core):
    update = make(core=core, reward_scale=0.5)
    batch = with_truncation(make_batch(update))
    start = update.objective.start(batch, update.model.unroll(batch.obs, batch.first, batch.state))
    torch.testing.assert_close(start.target, slow_targets(update, batch, 0.9, 0.65))


def test_targets_are_those_of_the_agent_s_own_time():
    """Where agents take turns, the rows of an agent are those in which it acts."""
    update = make()
    batch = make_batch(update)
    order = torch.arange(T).view(T, 1).expand(T, B).clone()
    order[:, 0] = torch.tensor([1, 0, 2, 3, 4, 5])
    successor = torch.arange(1, T + 1).view(T, 1).expand(T, B).clone()
    successor[:2, 0] = torch.tensor([2, 0])
    out = update.model.unroll(batch.obs, batch.first)
    got = update.objective.start(batch._replace(order=order, successor=successor), out).target
    # The same with the rows of the first lane where their time is.
    place = torch.tensor([1, 0, 2, 3, 4, 5, 6])

    def swapped(x):
        return torch.cat([x[place[: len(x)], :1], x[:, 1:]], 1)

    names = ("reward", "terminated", "truncated", "valid")
    moved = batch._replace(**{name: swapped(getattr(batch, name)) for name in names})
    expected = update.objective.start(moved, out._replace(value=swapped(out.value))).target
    assert torch.equal(got, swapped(expected))
    assert not torch.equal(got, update.objective.start(batch, out).target)


def test_loss_is_half_the_mean_squared_error_of_the_actions_taken():
    update = make()
    batch = make_batch(update)
    objective, model = update.objective, update.model
    start = objective.start(batch, model.unroll(batch.obs, batch.first))
    inputs = batch.without_last_row()
    lanes = torch.tensor([5, 0, 6])
    rows = inputs.lanes(lanes)
    out = model.unroll(rows.obs, rows.first)
    loss = objective.loss(Minibatch(rows, lanes, out), start, True)
    errors = [
        (out.params[t, i, batch.action["action"][t, lane]] - start.target[t, lane]).item()
        for i, lane in enumerate(lanes.tolist())
        for t in range(T)
        if batch.valid[t, lane]
    ]
    assert len(errors) < 3 * T, "reset rows are among them"
    assert loss.total.item() == pytest.approx(0.5 * sum(e * e for e in errors) / len(errors), rel=1e-5)
    assert objective.loss(Minibatch(rows, lanes, out), start, False).total == loss.total
    for name, value in {**loss.losses, **loss.diagnostics}.items():
        assert meaning(name), name
        assert value.dim() == 0
        assert not value.requires_grad
    assert loss.diagnostics["pqn/epsilon"] == model.epsilon


def test_parts_of_a_minibatch_add_up_to_it(monkeypatch):
    one, two = make(minibatches=2), make(minibatches=2)
    batch = make_batch(one)
    one.run(batch, 0, 0.0)
    divide_into_parts(monkeypatch, 4 * T)  # numbers of four rows of observations
    two.run(batch, 0, 0.0)
    for name, x in one.model.state_dict().items():
        torch.testing.assert_close(x, two.model.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 1.0), (0.05, 0.525), (0.1, 0.05), (0.5, 0.05), (1.0, 0.05)])
def test_epsilon_falls_in_a_line_and_stays(progress, expected):
    config = make().config
    assert epsilon(config, progress) == pytest.approx(expected)


def test_epsilon_is_that_of_the_progress_and_is_in_the_weights():
    update = make(pqn=PqnConfig(epsilon_start=0.8, epsilon_end=0.2, epsilon_fraction=0.5))
    assert update.model.epsilon.item() == pytest.approx(0.8), "before the first update"
    place = update.model.epsilon.data_ptr()
    update.run(make_batch(update), 7, 0.25)
    assert update.model.epsilon.item() == pytest.approx(0.5)
    assert update.model.epsilon.data_ptr() == place, "changed in place"
    assert update.state_dict()["model"]["epsilon"].item() == pytest.approx(0.5)
    other = make()
    other.load_state_dict(update.state_dict())
    assert other.model.epsilon.item() == pytest.approx(0.5), "a resume goes on with it"


def test_weights_of_another_run_begin_with_the_first_epsilon():
    old, new = make(), make(pqn=PqnConfig(epsilon_start=0.3))
    old.run(make_batch(old), 0, 1.0)
    new.initialize_from(old.state_dict()["model"], old.state_dict()["normalizers"])
    assert new.model.epsilon.item() == pytest.approx(0.3)
    assert torch.equal(new.model.q_head.weight, old.model.q_head.weight)


@pytest.mark.parametrize(("minibatches", "core"), [(1, "none"), (4, "none"), (2, "gru")])
def test_values_converge_to_those_of_the_rewards(minibatches, core):
    """Discount 0: the values are the mean rewards of the actions."""
    update = make(minibatches=minibatches, core=core, gamma=0.0, lr=3e-2)
    losses = []
    for number in range(40):
        batch = make_batch(update, seed=number)
        reward = batch.action["action"].float().masked_fill(~batch.valid, 0.0)
        metrics = update.run(batch._replace(reward=reward), number, 0.0)
        assert metrics["skipped"] == 0
        losses.append(float(metrics["losses/q_loss"]))
    assert losses[-1] < 0.05 * losses[0]
    out = update.model.unroll(batch.obs, batch.first, batch.state)
    torch.testing.assert_close(out.params[..., :3].mean((0, 1)), torch.tensor([0.0, 1.0, 2.0]), rtol=0, atol=0.3)
    assert math.isclose(float(update.model.epsilon), 1.0)
    assert update.objective.recordable


def test_an_error_of_one_row_reaches_no_reset_row():
    """A reset row is not learned from: its observation and action do not change the weights."""
    one, two = make(), make()
    batch = make_batch(one)
    other = {"action": batch.action["action"].clone()}
    other["action"][~batch.valid] = (other["action"][~batch.valid] + 1) % 3
    one.run(batch, 0, 0.0)
    two.run(batch._replace(action=other), 0, 0.0)
    assert torch.equal(one.flat.values, two.flat.values)
