"""The seam between an update and what is learned in it: the actor-critic objective, and another one beside it."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from update_helpers import ACTIONS, OBS, B, T, make_batch, make_update

from sfactory.config import Config, Model, Run
from sfactory.envs import EnvSpec
from sfactory.learning import objectives
from sfactory.learning.batch import rows_of
from sfactory.learning.distributed import SingleLearner
from sfactory.learning.network import build_model
from sfactory.learning.objectives import OBJECTIVES, Loss, Minibatch, Objective, Phase, objective_class
from sfactory.learning.objectives.actor_critic import ActorCriticObjective
from sfactory.monitor.table import meaning

torch.set_num_threads(1)


class QStart(NamedTuple):
    reward_target: Tensor

    def as_rows(self):
        return QStart(rows_of(self.reward_target))


class QObjective(Objective[QStart]):
    """One-step Q-learning: the policy head gives Q values, the value head is not used. Every second update has an
    auxiliary phase of one epoch that pulls all Q values to zero."""

    updates = 0

    @staticmethod
    def build_model(config, spec):
        return ActorCriticObjective.build_model(config, spec)

    def kl_of_update(self, batch, start, out):
        return torch.zeros(())  # a greedy policy has no useful one

    @property
    def recordable(self):
        return False

    @torch.no_grad()
    def start(self, batch, out):
        best = out.params[1:].max(-1).values.masked_fill(batch.terminated, 0.0)
        return QStart(batch.reward + self.config.trace.gamma * best)

    def loss(self, part, start, report):
        target = start.reward_target if part.lanes is None else start.reward_target.index_select(1, part.lanes)
        q = part.out.params.gather(-1, part.batch.action["action"].unsqueeze(-1)).squeeze(-1)
        error = (q - target).masked_fill(~part.batch.valid, 0.0).square().mean()
        return Loss(error, {"losses/value_loss": error.detach()} if report else {}, {})

    def further_phases(self, batch):
        self.updates += 1
        if self.updates % 2:
            return ()
        start, inputs = QStart(torch.zeros(T, B)), batch.without_last_row()

        def auxiliary(part, start, report):
            loss = part.out.params.square().mean()
            return Loss(loss, {"losses/entropy": loss.detach()} if report else {}, {})

        return [Phase(inputs, start, auxiliary, None, 1, 1)]


def test_actor_critic_is_the_registered_objective_of_every_run():
    assert objective_class(Config()) is OBJECTIVES["actor_critic"] is ActorCriticObjective


def test_build_model_builds_the_network_of_the_objective_with_the_weights_of_the_seed():
    spec = EnvSpec("test", OBS, ACTIONS)
    config = Config(run=Run(seed=5), model=Model(hidden=(8,)))
    before = torch.get_rng_state()
    one, two = build_model(config, spec), build_model(config, spec)
    other = build_model(Config(run=Run(seed=6), model=Model(hidden=(8,))), spec)
    assert torch.equal(before, torch.get_rng_state())
    for name, x in one.state_dict().items():
        assert torch.equal(x, two.state_dict()[name])
    assert not torch.equal(one.policy_head.weight, other.policy_head.weight)


@pytest.mark.parametrize("kernels", ["torch", "autograd"])
@pytest.mark.parametrize("proximal", ["recompute", "ewma", "snapshot"])
def test_loss_of_a_minibatch_is_pure_and_reports_documented_metrics(proximal, kernels):
    update = make_update(proximal=proximal, snapshot_age=0, kernels=kernels)
    batch = make_batch(update)
    objective, model = update.objective, update.model
    start = objective.start(batch, model.unroll(batch.obs, batch.first))
    objective.begin_epochs(start)
    inputs = batch.without_last_row()
    before = {name: x.clone() for part in update.state_dict().values() for name, x in part.items()}

    def loss(report):
        return objective.loss(Minibatch(inputs, None, model.unroll(inputs.obs, inputs.first)), start, report)

    first, second = loss(False), loss(True)
    if kernels == "torch":
        assert first.total is None
        assert not second.total.requires_grad, "nothing is recorded"
        assert all(torch.equal(one, two) for one, two in zip(first.gradient, second.gradient, strict=True))
    else:
        assert torch.equal(first.total, second.total)
        assert first.gradient is second.gradient is None
    assert (first.losses, first.diagnostics) == ({}, {})
    for name, value in {**second.losses, **second.diagnostics}.items():
        assert meaning(name), name
        assert value.dim() == 0
        assert not value.requires_grad
    assert ("offpolicy/discrepancy" in second.diagnostics) == (proximal == "snapshot")
    for part in update.state_dict().values():
        for name, x in part.items():
            assert torch.equal(x, before[name]), name
    assert all(p.grad is None for p in model.parameters())


def test_metrics_with_a_largest_value_are_reported_by_the_objective():
    update = make_update(proximal="snapshot", snapshot_age=0)  # with the discrepancy
    metrics = update.run(make_batch(update), 0, 0.0)
    assert set(update.objective.largest_metrics) <= set(metrics)
    update = make_update()
    assert update.objective.row() == {}
    assert make_update(proximal="ewma").objective.row() == {"proximal/decay": pytest.approx(0.8)}


class Shifted(SingleLearner):
    """Several learners, as one of them sees it: the mean over all is 0.5 above its own."""

    def average_metric(self, metric, rows):
        return metric + 0.5


def test_dual_variable_moves_by_the_mean_over_all_learners():
    own, all_of_them = (
        make_update(surrogate="r2vpo", minibatches=1, epochs=2, learners=learners)
        for learners in (SingleLearner(), Shifted())
    )
    batch = make_batch(own)
    for update in (own, all_of_them):
        update.run(batch, 0, 0.0)
    settings = own.config.surrogate
    first = settings.dual_start - settings.dual_rate * settings.variance_target  # r is 1 in the first step
    found = own.objective.dual.observed
    assert found > 0
    assert own.objective.dual.value.item() == pytest.approx(first + found.item() - settings.variance_target)
    moved = all_of_them.objective.dual.value.item() - own.objective.dual.value.item()
    assert moved == pytest.approx(2 * 0.5, abs=0.05)  # the second step starts from other weights


def test_state_of_another_kind_is_ignored():
    """The objective or the proximal policy may have changed since the checkpoint."""
    dual, snapshot = make_update(surrogate="r2vpo", proximal="ewma"), make_update(proximal="snapshot")
    batch = make_batch(dual)
    for update in (dual, snapshot):
        update.run(batch, 0, 0.0)
    value = dual.objective.dual.value.clone()
    dual.objective.load_state_dict(snapshot.objective.state_dict())
    assert torch.equal(dual.objective.dual.value, value)
    snapshot.objective.load_state_dict(dual.objective.state_dict())
    assert snapshot.objective.state_dict()
    dual.objective.reset()
    assert dual.objective.dual.value == dual.config.surrogate.dual_start


def test_kl_to_behavior_is_exact():
    """The parameters of behavior are stored; without them it would be 0.5 (log r)^2."""
    update = make_update(surrogate="decoupled_kl", proximal="behavior", minibatches=1, kernels="torch")
    batch = make_batch(update)
    params = batch.params + 0.3 * torch.randn(batch.params.shape, generator=torch.Generator().manual_seed(3))
    log_prob = update.model.distribution.log_prob(params, batch.action).masked_fill(~batch.valid, 0.0)
    stale = batch._replace(params=params, log_prob=log_prob)
    metrics = update.run(stale, 0, 0.0)
    kl = update.model.distribution.kl(params, batch.params)[batch.valid].mean()
    torch.testing.assert_close(metrics["offpolicy/kl_proximal_policy"], kl)
    assert metrics["offpolicy/kl_behavior_proximal"] == 0.0


@pytest.mark.parametrize("minibatches", [1, 4])
def test_another_objective_is_trained_by_the_same_update(monkeypatch, minibatches):
    monkeypatch.setitem(objectives.OBJECTIVES, "actor_critic", QObjective)
    update = make_update(minibatches=minibatches, gamma=0.1)
    batch = make_batch(update)
    value_head = update.model.value_head.weight.clone()
    losses = []
    for number in range(40):
        metrics = update.run(batch, number, 0.0)
        assert ("losses/entropy" in metrics) == (number % 2 == 1)  # the auxiliary phase
        assert metrics["skipped"] == 0
        losses.append(float(metrics["losses/value_loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(value_head, update.model.value_head.weight)  # no loss depends on it
    other = make_update(minibatches=minibatches)
    other.load_state_dict(update.state_dict())
