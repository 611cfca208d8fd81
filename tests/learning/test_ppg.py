"""PPG: what is kept, the auxiliary phase against a slow one, and that a cycle goes on after an exact resume."""

import copy
import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence
from update_helpers import ACTIONS, OBS, B, T, divide_into_parts, make_batch

from sfactory.config import Config, Model, Normalize, Optim, Run, Sampling, with_settings
from sfactory.envs import EnvSpec
from sfactory.envs.saved_state import decode, encode
from sfactory.learning.batch import AUXILIARY_STREAM, shuffled
from sfactory.learning.batch_fields import kept_bytes
from sfactory.learning.network import build_model
from sfactory.learning.objectives import Minibatch
from sfactory.learning.objectives.ppg import PhaseStart
from sfactory.learning.update import Update
from sfactory.monitor.table import meaning
from sfactory.workers.shared import RunSpec

torch.set_num_threads(1)


def make(separate=False, core="none", value_targets=False, **settings):
    config = Config(
        run=Run(seed=3, kernels="torch"),
        sampling=Sampling(groups_per_sampler=2, envs_per_group=B // 2, rollout_length=T),
        model=Model(hidden=(16,), core=core, core_size=8 if core != "none" else Model.core_size, separate=separate),
        normalize=Normalize(value_targets=value_targets),
        optim=Optim(lr=1e-2, eps=1e-3),  # the first gradient of the KL is rounding, which must not become a step
    )
    given = {"ppg.policy_updates": 3, "ppg.phase_epochs": 2, "batch.minibatches": 2, "batch.epochs": 1}
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    config = with_settings(config, {"algorithm.name": "ppg", **given})
    return Update(config, build_model(config, EnvSpec("test", OBS, ACTIONS)), torch.device("cpu"))


def run(update, count, first=0):
    """Updates on batches of the policy as it is; their metrics."""
    return [update.run(make_batch(update, seed=number), number, 0.0) for number in range(first, first + count)]


def weights(update):
    return update.flat.values.clone()


def slow_phase(model, kept, order, update):
    """The phase by torch.distributions and torch.optim. kept: (batch, target) of every update."""
    settings, optimizer = update.config, torch.optim.Adam(model.parameters(), update.lr, eps=update.config.optim.eps)
    obs = torch.cat([batch.obs["obs"][:-1] for batch, _ in kept], 1)
    target = torch.cat([target for _, target in kept], 1)
    valid = torch.cat([batch.valid for batch, _ in kept], 1)
    obs, target, valid = obs.flatten(0, 1), target.flatten(), valid.flatten()
    with torch.no_grad():
        before = Categorical(logits=model({"obs": obs}).params[:, :-1])
    for rows_of_epoch in order:
        for rows in rows_of_epoch.tensor_split(settings.ppg.policy_updates * settings.batch.minibatches):
            rows = rows[valid[rows]]
            out = model({"obs": obs[rows]})
            distance = kl_divergence(Categorical(logits=before.logits[rows]), Categorical(logits=out.params[:, :-1]))
            auxiliary, value = ((x - target[rows]) ** 2 / 2 for x in (out.params[:, -1], out.value))
            loss = auxiliary.mean() + value.mean() + settings.ppg.clone_coef * distance.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optim.max_grad_norm)
            optimizer.step()
    return loss


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("clone_coef", [1.0, 5.0])
def test_the_phase_is_the_slow_one(separate, clone_coef):
    update = make(separate, ppg__clone_coef=clone_coef)
    objective, kept = update.objective, []
    for number in range(3):
        assert list(objective.further_phases(None)) == []
        batch = make_batch(update, seed=number)
        batch = batch._replace(reward=batch.reward.masked_fill(~batch.valid, 7.0))
        start = objective.start(batch, update.model.unroll(batch.obs, batch.first))
        kept.append((batch._replace(obs={"obs": batch.obs["obs"].clone()}), start.target))
        batch.obs["obs"].zero_()  # the memory of a batch is used again
    expected = copy.deepcopy(update.model)
    order = torch.from_numpy(shuffled(3 * T * B, 2, 3, 0, AUXILIARY_STREAM))
    loss = slow_phase(expected, kept, order, update)
    (phase,) = objective.further_phases(None)
    metrics, skipped = update._run_phase(phase)
    assert len(skipped) == 2 * 3 * 2
    assert skipped.sum() == 0
    for name, x in update.model.state_dict().items():
        torch.testing.assert_close(x, expected.state_dict()[name], rtol=2e-4, atol=1e-4, msg=lambda m: f"{name}: {m}")  # noqa: B023
    assert metrics["ppg/clone_kl"] > 0
    total = metrics["ppg/auxiliary_loss"] + metrics["ppg/value_loss"] + clone_coef * metrics["ppg/clone_kl"]
    torch.testing.assert_close(total, loss.detach(), rtol=2e-3, atol=1e-5)


def test_a_phase_follows_every_third_update_and_keeps_the_metrics_of_the_update():
    update = make()
    objective, rows = update.objective, []
    for number in range(7):
        moments = update.optimizer.steps[0].item()
        (row,) = run(update, 1, number)
        rows.append(row)
        taken = update.optimizer.steps[0].item() - moments
        assert taken == (2 + 2 * 3 * 2 if number % 3 == 2 else 2), number
        assert objective.batches == (number + 1) % 3
        assert row["skipped"] == 0
    assert [number for number, row in enumerate(rows) if "ppg/clone_kl" in row] == [2, 5]
    (with_phase,) = run(make(ppg__policy_updates=1), 1)
    assert with_phase["losses/grad_norm"] == rows[0]["losses/grad_norm"], "that of the update"
    assert set(rows[2]) - set(rows[1]) == {"ppg/auxiliary_loss", "ppg/value_loss", "ppg/clone_kl"}
    assert all(meaning(name) for name in rows[2] if name != "skipped")
    assert not objective.recordable


def test_the_batches_of_a_cycle_use_the_same_memory_and_are_counted():
    update = make()
    run(update, 4)
    kept = {name: x.data_ptr() for name, x in update.objective.kept.items()}
    run(update, 4, 4)
    assert {name: x.data_ptr() for name, x in update.objective.kept.items()} == kept
    row = 4 * 4 + 4 + 1 + 1  # bytes: four floats, target, first, valid
    assert update.objective.row()["ppg/kept_mb"] == pytest.approx(3 * T * B * row / 1e6)


@pytest.mark.parametrize("updates", [1, 2, 3, 4])
def test_the_averaged_policy_starts_again_after_a_phase_and_does_not_see_it(updates):
    update = make(proximal__policy="ewma", ppg__policy_updates=2)
    run(update, updates)
    state = update.objective.state_dict()
    if updates % 2 == 0:
        assert state["weight"] == 1.0
        for name, x in update.model.named_parameters():
            assert torch.equal(state[f"mean.{name}"], x.detach())
    else:
        assert state["weight"] > 1.0


@pytest.mark.parametrize("core", ["none", "gru"])
@pytest.mark.parametrize("done", [1, 2, 3, 5])
def test_a_cycle_goes_on_after_an_exact_resume(core, done):
    one, two = make(core=core), make(core=core)
    run(one, done)
    two.load_state_dict(one.state_dict())
    two.objective.load_cycle_state(decode(encode(one.objective.cycle_state())))
    assert torch.equal(weights(one), weights(two))
    for x, y in zip(run(one, 4, done), run(two, 4, done), strict=True):
        assert set(x) == set(y)
        assert all(torch.equal(x[name], y[name]) for name in x)
    assert torch.equal(weights(one), weights(two))


def test_another_resume_begins_a_cycle():
    one, two = make(), make()
    run(one, 2)
    two.load_state_dict(one.state_dict())
    two.objective.load_cycle_state({})
    rows = run(two, 3, 2)
    assert ["ppg/clone_kl" in row for row in rows] == [False, False, True]
    run(one, 2, 2)
    one.load_state_dict(one.state_dict())
    assert one.objective.batches == 0, "weights were replaced"


def test_targets_are_kept_in_units_of_reward():
    """The scale of value targets goes on moving until the phase."""
    update = make(value_targets=True)
    run(update, 1)
    batch = make_batch(update, reward_scale=50.0, seed=9)
    start = update.objective.start(batch, update.model.unroll(batch.obs, batch.first))
    kept = update.objective.kept["target"][:, B : 2 * B]
    assert kept.abs().max() > 3 * start.target.abs().max()
    torch.testing.assert_close(update.normalizers.target(kept), start.target)
    first = update.objective.kept["target"][:, :B].clone()
    update.objective.start(batch, update.model.unroll(batch.obs, batch.first))
    (phase,) = update.objective.further_phases(batch)
    torch.testing.assert_close(
        phase.start.target.view(T, 3 * B)[:, :B],
        update.normalizers.target(first).masked_fill(~update.objective.kept["valid"][:, :B], 0.0),
    )


def test_rows_that_are_not_finite_are_not_kept():
    update = make(ppg__policy_updates=1)
    batch = make_batch(update)
    reward = batch.reward.clone()
    reward[5, 0] = torch.nan
    with torch.no_grad():
        update.objective.start(batch._replace(reward=reward), update.model.unroll(batch.obs, batch.first))
    valid = update.objective.kept["valid"]
    assert not valid[5, 0]
    assert valid[:, 1:].sum() == batch.valid[:, 1:].sum()


def test_parts_of_a_minibatch_add_up_to_it(monkeypatch):
    one, two = make(ppg__policy_updates=1), make(ppg__policy_updates=1)
    batch = make_batch(one)
    one.run(batch, 0, 0.0)
    divide_into_parts(monkeypatch, 4 * T)
    two.run(batch, 0, 0.0)
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-4, atol=1e-5)


def test_minibatches_of_a_phase_may_be_smaller():
    update = make(ppg__policy_updates=1, ppg__phase_minibatches=4, ppg__phase_epochs=1)
    run(update, 1)
    assert update.optimizer.steps[0] == 2 + 4
    with pytest.raises(ValueError, match=r"8 lanes must divide into the 3 minibatches of ppg\.phase-minibatches"):
        make(ppg__phase_minibatches=3)


def test_without_a_phase_the_policy_learns_as_the_actor_critic_with_its_own_value_network():
    """Separate networks: the auxiliary head changes nothing before the first phase."""
    one = make(separate=True)
    config = with_settings(
        one.config, {"algorithm.name": "actor_critic", "ppg.policy_updates": 32, "ppg.phase_epochs": 6}
    )
    two = Update(config, build_model(config, EnvSpec("test", OBS, ACTIONS)), torch.device("cpu"))
    shared = {name: x for name, x in one.model.state_dict().items() if "auxiliary" not in name}
    two.model.load_state_dict(shared)
    for number in range(2):
        batch = make_batch(two, seed=number)
        wide = batch._replace(params=torch.cat([batch.params, torch.zeros(T, B, 1)], -1))
        one.run(wide, number, 0.0)
        two.run(batch, number, 0.0)
    for name, x in two.model.state_dict().items():
        torch.testing.assert_close(one.model.state_dict()[name], x, rtol=1e-4, atol=1e-6)
    assert not math.isnan(float(weights(one).sum()))


def test_the_kl_is_that_from_the_policy_before_the_phase():
    update = make(ppg__policy_updates=1, ppg__clone_coef=3.0)
    run(update, 1)
    objective, g = update.objective, torch.Generator().manual_seed(5)
    start = PhaseStart(torch.randn(T, B, generator=g), 2.0 * torch.randn(T, B, 4, generator=g))
    batch = make_batch(update)
    out = update.model.unroll(batch.obs, batch.first)
    out = out._replace(params=out.params[:-1], value=out.value[:-1])
    loss = objective.auxiliary_loss(Minibatch(batch, None, out), start, True)
    before, after = (Categorical(logits=x[..., :-1]) for x in (start.params, out.params))
    expected = kl_divergence(before, after)[batch.valid].mean()
    torch.testing.assert_close(loss.losses["ppg/clone_kl"], expected.detach())
    errors = sum(((x - start.target) ** 2)[batch.valid].mean() / 2 for x in (out.params[..., -1], out.value))
    torch.testing.assert_close(loss.total, errors + 3.0 * expected)


def test_phases_shuffle_in_different_orders_and_the_averaged_policy_does_not_step_in_them(monkeypatch):
    update = make(ppg__policy_updates=1, proximal__policy="ewma")
    phases, steps = [], []
    run_phase, after_step = update._run_phase, update.objective.proximal.after_step
    monkeypatch.setattr(update, "_run_phase", lambda phase: phases.append(phase) or run_phase(phase))
    monkeypatch.setattr(
        update.objective.proximal, "after_step", lambda *given: steps.append(given) or after_step(*given)
    )
    run(update, 2)
    orders = [phase.order for phase in phases if isinstance(phase.start, PhaseStart)]
    assert len(orders) == 2
    assert not torch.equal(*orders)
    assert len(steps) == 2 * 2, "two steps of the policy in each update"


@pytest.mark.parametrize("settings", [{"mask": "m2po"}, {"objective": "bpo"}, {"objective": "r2vpo"}])
def test_every_kind_of_surrogate_has_a_phase(settings):
    """A mask over the whole update, a head of its own, and a dual variable, which the phase leaves alone."""
    update = make(ppg__policy_updates=1, **{f"surrogate__{name}": value for name, value in settings.items()})
    steps = []
    if update.objective.dual is not None:
        step = update.objective.dual.step
        update.objective.dual.step = lambda *given: steps.append(given) or step(*given)
    for row in run(update, 2):
        assert row["skipped"] == 0
        assert math.isfinite(row["ppg/clone_kl"])
    assert len(steps) == (4 if update.objective.dual is not None else 0)


def test_a_cycle_begins_again_where_batches_or_cycles_have_another_size():
    """A lockstep run may be resumed with another batch.slots, or with another ppg.policy-updates by --allow."""
    first = make()
    run(first, 2)
    wide = [make_batch(first, seed=number) for number in range(2)]
    state = first.objective.cycle_state()
    assert state["batches"] == 2
    shorter = make(ppg__policy_updates=2)
    shorter.objective.load_cycle_state(state)
    assert shorter.objective.batches == 0
    other = make()
    other.objective.load_cycle_state(state)
    whole = wide[0].lanes(torch.arange(B // 2))
    half = wide[0]._replace(**{name: getattr(whole, name) for name in wide[0]._fields})
    for number in range(3):
        assert ("ppg/clone_kl" in other.run(half, 2 + number, 0.0)) == (number == 2)
    assert other.objective.kept["target"].shape == (T, 3 * (B // 2))


@pytest.mark.parametrize("core", ["none", "gru"])
def test_kept_bytes_are_those_of_the_kept_batches(core):
    update = make(core=core)
    run(update, 1)
    schema = RunSpec(update.config, EnvSpec("test", OBS, ACTIONS), "", 0).schema
    kept = update.objective.kept.values()
    assert kept_bytes(update.config, schema) == sum(x.nbytes for x in kept)
    assert kept_bytes(with_settings(update.config, {"algorithm.name": "actor_critic", **NO_PPG}), schema) == 0


NO_PPG = {f"ppg.{name}": value for name, value in vars(Config().ppg).items()}
