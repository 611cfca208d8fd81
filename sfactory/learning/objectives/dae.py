"""DAE: a policy gradient whose advantages are learned, by regression on whole trajectories without importance ratios.

Pan et al. 2022, arXiv 2109.06093; on data of other policies Pan & Schoelkopf 2024, arXiv 2402.12874, without their
model of the transitions (B = 0). The network has a number f(x, a) for every action besides the value of the state.
Centered under a policy it is the advantage, A(x, a) = f(x, a) - sum_a policy(a|x) f(x, a). Values and advantages are
those of the policy at the start of the update, through all of its epochs: on policy this is the policy that acted, as
in hrpan/dae.

The critic's loss is the squared error between the value and what was received until the rollout or the episode ended,
less the advantages on the way. The policy is improved by the advantages as the network has them in the minibatch,
scaled by their root mean square: that of the action taken, with or without the critic's error, or those of all actions.

Legend: T steps, B lanes of the batch, b lanes of a minibatch, K distribution parameters, k actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from sfactory.algo import direct_advantage, joint
from sfactory.algo.loss import Loss as LossTerms
from sfactory.algo.loss import total_loss
from sfactory.algo.normalize import masked_moments
from sfactory.algo.surrogates.ratios import Surrogate, SurrogateInput
from sfactory.config import Config
from sfactory.learning.agent_order import by_agent, by_time
from sfactory.learning.batch import Batch, BatchLanes
from sfactory.learning.distributed import BatchMoments, Joint
from sfactory.learning.normalizers import Normalizers
from sfactory.learning.objectives.actor_critic import ActorCriticObjective, ActorCriticStart
from sfactory.learning.objectives.base import Minibatch
from sfactory.model.actor_critic import ActorCritic, Output
from sfactory.model.advantage_network import AdvantageNetwork
from sfactory.model.distributions import at_least_single
from sfactory.model.further_columns import WithAdvantages


class DaeObjective(ActorCriticObjective):
    """Settings: sections `dae`, `proximal`, `surrogate` and `loss`, `trace.gamma` and `trace.trace_lambda`."""

    network = AdvantageNetwork
    distribution: WithAdvantages

    def __init__(
        self,
        config: Config,
        model: ActorCritic,
        normalizers: Normalizers,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        super().__init__(config, model, normalizers, autocast)
        # The scale of the advantages is that of a whole minibatch.
        self.divisible = self.divisible and not config.normalize.advantage

    # -- once per update ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def start(self, batch: Batch, out: Output) -> ActorCriticStart:
        params, output = out.params[:-1].detach(), at_least_single(out.value.detach())
        log_prob, log_probs = self.distribution.log_prob(params, batch.action), self.distribution.log_probs(params)
        log_rho = (log_prob - batch.log_prob).masked_fill(~batch.valid, 0.0)
        rows, settings = self._rows(batch, self.normalizers.value(output), log_rho), self.config.trace
        found = direct_advantage.backup(rows, gamma=settings.gamma, trace_lambda=settings.trace_lambda)
        before = found._replace(returns=self.normalizers.target(found.returns))
        error = self._errors(before, self._of_action(params, log_probs, batch), output[:-1], batch)
        target, value = self.normalizers.value(output[:-1] + error), self.normalizers.value(output[:-1])
        self.normalizers.add_targets(target, batch.valid)
        return ActorCriticStart(
            value=self.normalizers.target(value),
            target=self.normalizers.target(target),
            advantage=torch.zeros_like(log_prob),  # those of the minibatch take its place
            weight=torch.ones_like(log_prob),
            log_prob=log_prob,
            params=params,
            log_rho=log_rho,
            prefix=self._prefix(batch, log_rho),
            action_value=None,
            keep=self._keep(log_rho, batch.valid),
            effective_lambda=torch.full((), settings.trace_lambda, device=output.device),
            valid=batch.valid,
            packed=None,
            returns=self.normalizers.target(found.returns),
            decay=found.decay,
            log_probs=log_probs,
        )

    # -- the loss of a minibatch -------------------------------------------------------------------------------------

    @torch.no_grad()
    def _start_of(self, part: Minibatch, start: ActorCriticStart) -> ActorCriticStart:
        """With the present advantages, scaled: [T, b] of the actions taken, or [T, b, k]."""
        start = super()._start_of(part, start)
        assert start.log_probs is not None
        advantages = self._centered(part.out.params, start.log_probs)
        square = direct_advantage.mean_square(advantages, start.log_probs)
        if self.config.dae.advantages != "all":
            advantages = self.distribution.of_action(advantages, part.batch.action)
        if self.config.dae.advantages == "returns":
            advantages = advantages + self._errors_of(part, start, advantages)
            square = advantages.square()
        if self.config.normalize.advantage:
            advantages = advantages / (self._mean(square, part.batch.valid).sqrt() + 1e-8)
        return start._replace(advantage=advantages)

    def _surrogate(self, x: SurrogateInput) -> Surrogate:
        if self.config.dae.advantages != "all":
            return super()._surrogate(x)
        assert x.params is not None
        assert x.proximal_params is not None, "refused: a proximal policy without a distribution"
        found = direct_advantage.expected_clipped(
            self.distribution.log_probs(x.params),
            self.distribution.log_probs(x.proximal_params),
            x.advantage,
            clip=self.config.surrogate.clip,
            dual_clip=self.config.surrogate.dual_clip,
        )
        return Surrogate(found.loss.masked_fill(~x.valid, 0.0), found.clipped.masked_fill(~x.valid, 0.0))

    def _total(self, surrogate: Surrogate, part: Minibatch, start: ActorCriticStart, entropy: Tensor) -> LossTerms:
        """The error of the regression takes the place of that of the value."""
        assert start.log_probs is not None
        error = self._errors_of(part, start, self._of_action(part.out.params, start.log_probs, part.batch))
        return total_loss(
            surrogate,
            error,
            torch.zeros_like(error),
            entropy,
            part.batch.valid,
            value_coef=self.config.loss.value_coef,
            entropy_coef=self.entropy_coef,
            num_valid=part.num_valid,
        )

    def _diagnostics(self, x: SurrogateInput, surrogate: Surrogate, start: ActorCriticStart) -> dict[str, Tensor]:
        assert x.params is not None
        assert start.log_probs is not None
        square = direct_advantage.mean_square(self._centered(x.params.detach(), start.log_probs), start.log_probs)
        root = (square.masked_fill(~x.valid, 0.0).sum() / x.valid.sum().clamp(min=1)).sqrt()
        return {**super()._diagnostics(x, surrogate, start), "losses/advantage": root}

    def _joint(self, x: SurrogateInput, start: ActorCriticStart, found: Mapping[str, Tensor]) -> dict[str, Joint]:
        def squares() -> Tensor:
            return joint.row_mean(found["losses/advantage"].square(), x.valid)

        return {**super()._joint(x, start, found), "losses/advantage": Joint(squares, joint.root_mean)}

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _centered(self, params: Tensor, log_probs: Tensor) -> Tensor:
        """Advantages of all actions [T, b, k], in the units of the value head's output."""
        return direct_advantage.centered(self.distribution.advantages(params), log_probs)

    def _of_action(self, params: Tensor, log_probs: Tensor, batch: Batch | BatchLanes) -> Tensor:
        """Advantages of the actions taken [T, b], in the units of the value head's output."""
        return self.distribution.of_action(self._centered(params, log_probs), batch.action)

    def _errors_of(self, part: Minibatch, start: ActorCriticStart, advantage: Tensor) -> Tensor:
        """Errors [T, b] of the network's outputs. start, advantage: of the rows of the minibatch."""
        assert start.returns is not None
        assert start.decay is not None
        found = direct_advantage.Backup(start.returns, start.decay)
        return self._errors(found, advantage, at_least_single(part.out.value), part.batch)

    def _errors(
        self, found: direct_advantage.Backup, advantage: Tensor, value: Tensor, batch: Batch | BatchLanes
    ) -> Tensor:
        """Errors of the regression [T, b], of rows in order of time; the backup is in the order of the actions."""
        rows = (by_agent(x, batch.order) for x in (advantage, value, batch.valid))
        return by_time(direct_advantage.errors(found, *rows), batch.order)

    def _mean(self, x: Tensor, valid: Tensor) -> Tensor:
        """[] mean of x [T, b] over the valid rows of all learners."""
        ((mean, _, _),) = self.normalizers.learners.pool_moments([BatchMoments(*masked_moments(x, valid))])
        return mean.to(x.dtype)
