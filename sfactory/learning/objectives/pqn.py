"""PQN: action values by Q(lambda) on the newest data, without replay and without a target network.

Gallici et al. 2024, arXiv 2407.04811. Once per update the targets are computed with the values under the weights at
its start; in the paper with those that acted, which are the same weights at lag 0. Each minibatch moves the values of
the actions that were taken to their targets. There is no ratio, so any data can be learned from; its lag only means
that the rewards along a trace are those of an older policy, and lambda bounds how far that reaches.

Legend: T steps, B lanes of the batch, b lanes of a minibatch, k actions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfactory.algo import joint
from sfactory.algo.loss import explained_variance
from sfactory.algo.q_lambda import q_lambda_targets
from sfactory.config import Config
from sfactory.envs import EnvSpec
from sfactory.learning.agent_order import by_time, trace_rows
from sfactory.learning.batch import Batch, rows_of
from sfactory.learning.distributed import Joint
from sfactory.learning.objectives.base import Loss, Minibatch, Objective, network_arguments
from sfactory.model.actor_critic import Output
from sfactory.model.q_network import QNetwork


class PqnStart(NamedTuple):
    """Computed once per update. All tensors are detached."""

    target: Tensor  # [T, B]

    def as_rows(self) -> PqnStart:
        """[1, T x B]. A view."""
        return PqnStart(rows_of(self.target))


class PqnObjective(Objective[PqnStart]):
    """Settings: section `pqn`, `trace.gamma` and `trace.trace_lambda`."""

    divisible = True
    model: QNetwork

    @classmethod
    def build_model(cls, config: Config, spec: EnvSpec) -> QNetwork:
        """A head with one value per action. Raises ValueError unless the action is one choice."""
        return QNetwork(**network_arguments(config, spec), epsilon=epsilon(config, 0.0))

    # -- once per update ---------------------------------------------------------------------------------------------

    def set_progress(self, progress: float) -> None:
        self.model.epsilon.fill_(epsilon(self.config, progress))

    @torch.no_grad()
    def start(self, batch: Batch, out: Output) -> PqnStart:
        best, reward, settings = out.value.detach(), self.normalizers.reward(batch.reward), self.config.trace
        rows = trace_rows(batch, reward=reward, value=best, log_rho=batch.log_prob)  # the last is not used
        target = q_lambda_targets(rows, gamma=settings.gamma, trace_lambda=settings.trace_lambda)
        return PqnStart(by_time(target, batch.order))

    # -- the loss of a minibatch -------------------------------------------------------------------------------------

    def loss(self, part: Minibatch, start: PqnStart, report: bool) -> Loss:
        target = start.target if part.lanes is None else start.target.index_select(1, part.lanes)
        valid = part.batch.valid
        count = (valid.sum() if part.num_valid is None else part.num_valid).clamp(min=1)
        q = self.model.distribution.value(part.out.params, part.batch.action)
        error = (q - target).masked_fill(~valid, 0.0)
        total = 0.5 * error.square().sum() / count
        if not report:
            return Loss(total, {}, {})
        mean = q.detach().masked_fill(~valid, 0.0).sum() / count
        losses = {"losses/q_loss": total.detach(), "losses/q": mean}
        name = "losses/explained_variance"
        found = {name: explained_variance(q.detach(), target, valid), "pqn/epsilon": self.model.epsilon.clone()}
        fit = Joint(lambda: joint.fit_moments(q.detach(), target, valid), joint.fit)
        return Loss(total, losses, found, joint={name: fit})


def epsilon(config: Config, progress: float) -> float:
    """Share of random actions after this share of the run."""
    settings = config.pqn
    moved = min(progress / settings.epsilon_fraction, 1.0) if settings.epsilon_fraction else 1.0
    return settings.epsilon_start + moved * (settings.epsilon_end - settings.epsilon_start)
