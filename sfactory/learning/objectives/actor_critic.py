"""Policy gradients with a value function: V-trace, PPO, decoupled PPO and relatives.

Once per update the trace turns rewards and values into targets and advantages. Each minibatch has a surrogate loss of
the policy, a value loss and an entropy bonus; the proximal policy is the center of the trust region.

Legend: T steps, B lanes of the batch, b lanes of a minibatch, K distribution parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sfactory.algo import closed_form, joint
from sfactory.algo.baseline import baseline_means, optimal_baseline
from sfactory.algo.histogram import histogram_error, outside_fraction
from sfactory.algo.loss import Loss as LossTerms
from sfactory.algo.loss import diagnostics, total_loss
from sfactory.algo.proximal import PROXIMALS, Proximal, decay_from_center_of_mass
from sfactory.algo.schedule import between
from sfactory.algo.surrogates import batch_rules
from sfactory.algo.surrogates.dual import DualVariable
from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import Surrogate, SurrogateInput, log_cap, log_interval
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.algo.trace import LOG_RHO_LIMIT, TRACES, Trace, TraceInput
from sfactory.algo.weight_rule import check_weights
from sfactory.config import Config
from sfactory.envs import EnvSpec
from sfactory.learning.agent_order import by_agent, by_time, trace_rows
from sfactory.learning.batch import Batch, BatchLanes, rows_of
from sfactory.learning.distributed import BatchMoments, Joint
from sfactory.learning.native_network import NativeLearnerNetwork, row_numbers
from sfactory.learning.normalizers import Normalizers
from sfactory.learning.objectives.base import ESS_METRIC, Loss, Minibatch, Objective, network_arguments
from sfactory.model.actor_critic import ActorCritic, Output
from sfactory.model.distribution_gradient import HeadGradient, has_gradient
from sfactory.model.distributions import at_least_single
from sfactory.model.histogram_head import ValueBins
from sfactory.model.own_network import OwnNetwork
from sfactory.native.head import LossColumns, NativeLoss

LEAST_LEFT = 0.01
"""Share of the run that mdpo divides its coefficient by, at least: the last updates would not move the policy."""
READ_BY_LOSS = (
    "value", "target", "advantage", "weight", "log_rho", "prefix", "action_value", "keep", "returns", "decay",
    "log_probs",
)  # fmt: skip
"""Fields of `ActorCriticStart` with rows that `_loss` reads."""
DUAL = "dual."
"""Prefix of the dual variable in the state."""


class ActorCriticStart(NamedTuple):
    """The batch under the weights at the start of the update. All tensors are detached."""

    value: Tensor  # [T, B] output of the value head, in the units of the target
    target: Tensor  # [T, B] target for the output of the value head
    advantage: Tensor  # [T, B] normalized with `normalize.advantage`
    weight: Tensor  # [T, B] the trace's weight of the policy gradient
    log_prob: Tensor  # [T, B]
    params: Tensor  # [T, B, K]
    log_rho: Tensor  # [T, B] log policy - log behavior, 0 on reset rows
    prefix: Tensor | None  # [T, B] smallest rho of the trajectory before each step, if the objective needs it
    action_value: Tensor | None  # [T, B] value + unnormalized advantage, in the units of the value, if it needs it
    keep: Tensor | None  # [T, B] bool, samples that a mask over the whole update keeps; None: all
    effective_lambda: Tensor  # []
    valid: Tensor  # [T, B] bool, the rows that this is a mean of
    packed: Tensor | None  # [T, B, 5 or 6] what the closed form reads (`closed_form.pack`), None if it is not used
    returns: Tensor | None = None  # [T, B] dae: see `direct_advantage.Backup`, in the units of the value
    decay: Tensor | None = None  # [T, B] dae: the same, both in the order of the agent's actions
    log_probs: Tensor | None = None  # [T, B, k] dae: of all actions
    outside: Tensor | None = None  # [] share of the targets outside the bins of the value; None without bins

    def as_rows(self) -> ActorCriticStart:
        """Every [T, B] tensor as [1, T x B]. A view."""
        return ActorCriticStart(*(rows_of(x) if x is None or x.dim() else x for x in self))


class ActorCriticObjective(Objective[ActorCriticStart]):
    """Settings: the sections `trace`, `proximal`, `surrogate` and `loss`.

    State besides the weights: the proximal policy's, and the dual variable of r2vpo. `loss` keeps the mean that this
    variable bounds, for the step that follows.
    """

    network: ClassVar[type[ActorCritic]] = ActorCritic
    largest_metrics: ClassVar[tuple[str, ...]] = ("offpolicy/max_abs_log_rho", "offpolicy/max_discrepancy")

    def __init__(
        self,
        config: Config,
        model: ActorCritic,
        normalizers: Normalizers,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        super().__init__(config, model, normalizers, autocast)
        check_weights(
            config.trace.estimator,
            config.proximal.policy,
            config.surrogate.objective,
            config.surrogate.behavior_weight,
        )
        self.distribution = model.distribution
        center_of_mass = config.proximal.center_of_mass or float(config.optimizer_steps_per_update)
        self.decay = decay_from_center_of_mass(center_of_mass) if config.proximal.policy == "ewma" else None
        self.proximal: Proximal = PROXIMALS[config.proximal.policy](
            center_of_mass=center_of_mass, age=config.proximal.snapshot_age, kept=config.proximal.snapshots_kept
        )
        self.proximal.reset(model)
        settings = config.surrogate
        self.surrogate = SURROGATES[settings.objective]
        self.bins = model.value_bins
        self.divisible = not self.surrogate.whole_minibatch
        self.by_formula = (
            config.run.kernels != "autograd"
            and has_gradient(self.distribution)
            and closed_form.has_slopes(settings.objective)
            and settings.mask == "none"
            and model.value_bins is None
        )
        self.native_loss: NativeLoss | None = None
        device = next(model.parameters()).device
        # A tensor where it changes, because recorded updates read the same memory every time.
        self.entropy_coef: float | Tensor = config.loss.entropy_coef
        if config.loss.entropy_final is not None:
            self.entropy_coef = torch.full((), config.loss.entropy_coef, device=device)
        self.annealing = torch.ones((), dtype=torch.float64, device=device)  # 1 / t_k of mdpo
        self.dual = (
            DualVariable(settings.dual_start, settings.dual_rate, settings.variance_target, device)
            if "dual" in self.surrogate.needs
            else None
        )
        self.dual_rows = torch.zeros((), dtype=torch.float64, device=device)  # of the mean that it observed

    def use_native(self, network: NativeLearnerNetwork) -> None:
        super().use_native(network)
        settings = self.config.surrogate
        weight_cap = settings.weight_cap if "weight_cap" in self.surrogate.uses else None
        own_weight = self.surrogate.own_weight(settings.behavior_weight)
        if self.by_formula:
            self.native_loss = NativeLoss(
                self.distribution,
                anchor_is_behavior=own_weight in ("surrogate", "twice"),
                weighted=own_weight in ("trace", "twice"),
                log_interval=log_interval(settings.clip),
                log_cap=log_cap(weight_cap),
                log_dual_clip=math.log(settings.dual_clip) if settings.dual_clip else 0.0,
                value_clip=self.config.loss.value_clip,
                value_coef=self.config.loss.value_coef,
                entropy_coef=self.config.loss.entropy_coef,
            )

    # -- the network ---------------------------------------------------------------------------------------------------

    @classmethod
    def build_model(cls, config: Config, spec: EnvSpec) -> ActorCritic:
        """A policy head and a value head."""
        settings = config.model
        kind = functools.partial(OwnNetwork, network=settings.network) if settings.network else cls.network
        return kind(
            **network_arguments(config, spec),
            separate=settings.separate,
            log_std_init=settings.log_std_init,
            squash=settings.squash,
            median=config.surrogate.has_median_head,
            value_bins=value_bins(config),
        )

    # -- once per update ---------------------------------------------------------------------------------------------

    @property
    def recordable(self) -> bool:
        return self.proximal.recordable

    def set_progress(self, progress: float) -> None:
        if "annealing" in self.surrogate.needs:
            self.annealing.fill_(1.0 / max(1.0 - progress, LEAST_LEFT))
        final = self.config.loss.entropy_final
        if final is not None and isinstance(self.entropy_coef, Tensor):
            now = between(self.config.loss.entropy_coef, final, progress)
            self.entropy_coef.fill_(now)
            if self.native_loss is not None:
                self.native_loss.set_entropy_coef(now)

    @torch.no_grad()
    def start(self, batch: Batch, out: Output) -> ActorCriticStart:
        params, value = out.params[:-1].detach(), self.normalizers.value(at_least_single(out.value.detach()))
        log_prob = self.distribution.log_prob(params, batch.action)
        log_rho = (log_prob - batch.log_prob).masked_fill(~batch.valid, 0.0)
        trace = self._trace(batch, value, log_rho)
        self.normalizers.add_targets(trace.target, batch.valid)
        advantage = self.normalizers.advantage(trace.advantage, batch.valid)
        if self.config.trace.baseline == "optimal":
            advantage = self._above_baseline(advantage, trace.weight, log_rho, batch, params)
        start = ActorCriticStart(
            value=self.normalizers.target(value[:-1]),
            target=self.normalizers.target(trace.target),
            advantage=advantage,
            weight=trace.weight,
            log_prob=log_prob,
            params=params,
            log_rho=log_rho,
            prefix=self._prefix(batch, log_rho),
            action_value=(
                self._action_value(at_least_single(out.value[:-1].detach()), value[:-1], trace.advantage)
                if "action_value" in self.surrogate.needs
                else None
            ),
            keep=self._keep(log_rho, batch.valid),
            effective_lambda=trace.effective_lambda,
            valid=batch.valid,
            packed=None,
        )
        if self.bins is not None:
            outside = outside_fraction(start.target, batch.valid, low=self.bins.low, high=self.bins.high)
            start = start._replace(outside=outside.to(start.target.dtype))
        if self.native_loss is not None:
            self.native_loss.bind(self._columns(batch, start))
        elif self.by_formula:
            start = start._replace(packed=self._pack(batch, start))
        return start

    def begin_epochs(self, start: ActorCriticStart) -> None:
        self.proximal.begin_update(self.model, start.log_prob, start.params)

    def _trace(self, batch: Batch, value: Tensor, log_rho: Tensor) -> Trace:
        """Targets and advantages. value [T + 1, B] in units of reward; log_rho [T, B]."""
        found = self._estimate(self._rows(batch, value, log_rho))
        return Trace(*(by_time(x, batch.order) if x.dim() else x for x in found))

    def _rows(self, batch: Batch, value: Tensor, log_rho: Tensor) -> TraceInput:
        """Rows of a trace, in the order of the agent's actions. value [T + 1, B] in units of reward."""
        return trace_rows(batch, reward=self.normalizers.reward(batch.reward), value=value, log_rho=log_rho)

    def _action_value(self, output: Tensor, value: Tensor, advantage: Tensor) -> Tensor:
        """[T, B] value + advantage, in the units of the value head, from its output and both in units of reward.

        Called after `Normalizers.add_targets`. A head with bins was not corrected: its output is what it was, so that
        the advantage is added to that. Otherwise the move of the statistics would count as an advantage.
        """
        found = self.normalizers.target(value + advantage)
        if self.bins is None or not self.config.normalize.value_targets:
            return found
        return output + (found - self.normalizers.target(value))

    def _prefix(self, batch: Batch, log_rho: Tensor) -> Tensor | None:
        """[T, B] what minpro multiplies each step with, see `batch_rules.prefix_minimum`; None for other objectives."""
        if "prefix" not in self.surrogate.needs:
            return None
        rows = log_rho, batch.terminated | batch.truncated, batch.valid
        found = batch_rules.prefix_minimum(*(by_agent(x, batch.order) for x in rows))
        return by_time(found, batch.order)

    def _keep(self, log_rho: Tensor, valid: Tensor) -> Tensor | None:
        """[T, B] bool, the mask of M2PO over the whole update; None with another mask."""
        if self.config.surrogate.mask != "m2po":
            return None
        return batch_rules.within_second_moment(log_rho, valid, self.config.surrogate.second_moment)

    def _estimate(self, rows: TraceInput) -> Trace:
        """Targets and advantages of rows in order."""
        return TRACES[self.config.trace.estimator](
            rows,
            gamma=self.config.trace.gamma,
            trace_lambda=self.config.trace.trace_lambda,
            rho_bar=self.config.trace.rho_bar,
            c_bar=self.config.trace.c_bar,
            pg_rho_bar=self.config.trace.pg_rho_bar,
            leak=self.config.trace.leak,
        )

    def _above_baseline(
        self, advantage: Tensor, trace_weight: Tensor, log_rho: Tensor, batch: Batch, params: Tensor
    ) -> Tensor:
        """Advantages [T, B] minus the optimal baseline of the whole batch, over all learners.

        The weight of a row is that of its first gradient, before the clip: the ratio where the surrogate has it, the
        trace's weight where it is used.
        """
        settings, weight = self.config.surrogate, torch.ones_like(advantage)
        if settings.behavior_weight in ("surrogate", "twice"):
            weight = weight * log_rho.clamp(-LOG_RHO_LIMIT, log_cap(settings.weight_cap)).exp()
        if settings.behavior_weight in ("trace", "twice"):
            weight = weight * trace_weight
        means = baseline_means(advantage, weight, self.distribution.score_square(params, batch.action), batch.valid)
        rows = batch.valid.sum().double()
        ((means, _, _),) = self.normalizers.learners.pool_moments([BatchMoments(means, torch.zeros_like(means), rows)])
        return (advantage - optimal_baseline(means).to(advantage.dtype)).masked_fill(~batch.valid, 0.0)

    # -- the loss of a minibatch -------------------------------------------------------------------------------------

    def loss(self, part: Minibatch, start: ActorCriticStart, report: bool) -> Loss:
        gradient = self._gradient(part, start) if self.by_formula else None
        if gradient is not None and not report:
            return Loss(None, {}, {}, gradient)
        with torch.set_grad_enabled(gradient is None):
            return self._loss(part, start, report)._replace(gradient=gradient)

    def _pack(self, batch: Batch, start: ActorCriticStart) -> Tensor:
        return closed_form.pack(
            behavior=batch.log_prob,
            proximal=self.proximal.fixed_log_prob(start.log_prob, batch.log_prob),
            advantage=start.advantage,
            weight=start.weight,
            value=start.value,
            target=start.target,
            valid=batch.valid,
            behavior_weight=self.config.surrogate.behavior_weight,
        )

    def _columns(self, batch: Batch, start: ActorCriticStart) -> LossColumns:
        """What the native loss reads, of all rows."""

        def column(x: Tensor) -> Tensor:
            return x.reshape(-1).float().contiguous()

        fixed = self.proximal.fixed_log_prob(start.log_prob, batch.log_prob)
        return LossColumns(
            action={name: leaf.flatten(0, 1).contiguous() for name, leaf in batch.action.items()},
            behavior=column(batch.log_prob),
            advantage=column(start.advantage),
            weight=column(start.weight),
            target=column(start.target),
            old_value=column(start.value),
            valid=batch.valid.reshape(-1),
            proximal=None if fixed is None else column(fixed),
            lag=column(batch.lag) if self.config.proximal.policy == "interpolate" else None,
        )

    @torch.no_grad()
    def _native_gradient(self, native: NativeLoss, part: Minibatch) -> tuple[Tensor, Tensor]:
        """As `_gradient`, by the native kernels."""
        params, value, proximal = part.out.params.flatten(0, 1), part.out.value.flatten(), None
        if native.columns.proximal is None and native.columns.lag is None:
            log_prob = self.distribution.log_prob(part.out.params, part.batch.action)
            proximal = self._proximal(part, log_prob)[0].reshape(-1).contiguous()
        whole = part.batch.whole if isinstance(part.batch, BatchLanes) else part.batch
        index = None if part.lanes is None else row_numbers(part.lanes, *whole.valid.shape)
        of_params, of_value = native.gradient(index, params, value, proximal)
        return of_params.view_as(part.out.params), of_value.view_as(part.out.value)

    @torch.no_grad()
    def _gradient(self, part: Minibatch, start: ActorCriticStart) -> tuple[Tensor, Tensor]:
        """Gradient of the loss with respect to the outputs, params [T, b, K] and value [T, b], by formula."""
        if self.native_loss is not None:
            return self._native_gradient(self.native_loss, part)
        assert start.packed is not None
        rows = closed_form.unpack(start.packed if part.lanes is None else start.packed.index_select(1, part.lanes))
        head = HeadGradient(self.distribution, part.out.params, part.batch.action)
        settings = self.config.surrogate
        slopes = closed_form.loss_slopes(
            head.log_prob,
            at_least_single(part.out.value),
            self._proximal(part, head.log_prob)[0] if rows.proximal is None else rows.proximal,
            rows,
            objective=settings.objective,
            behavior_weight=settings.behavior_weight,
            clip=settings.clip,
            dual_clip=settings.dual_clip,
            weight_cap=settings.weight_cap,
            value_coef=self.config.loss.value_coef,
            value_clip=self.config.loss.value_clip,
            entropy_coef=self.entropy_coef,
            num_valid=part.num_valid,
        )
        return head(slopes.log_prob, slopes.entropy), slopes.value

    def _loss(self, part: Minibatch, start: ActorCriticStart, report: bool) -> Loss:
        """The loss, to be differentiated, and its metrics."""
        batch, start = part.batch, self._start_of(part, start)
        log_prob, entropy = self.distribution.log_prob_entropy(part.out.params, batch.action)
        proximal, proximal_params = self._proximal(part, log_prob)
        if proximal_params is None and self.config.proximal.policy == "behavior":
            proximal_params = batch.params
        x = SurrogateInput(
            log_prob=log_prob,
            proximal=proximal,
            behavior=batch.log_prob,
            advantage=start.advantage,
            weight=start.weight,
            valid=batch.valid,
            params=part.out.params,
            proximal_params=proximal_params,
            behavior_params=batch.params,
            distribution=self.distribution,
            annealing=self.annealing,
            dual=None if self.dual is None else self.dual.value,
            prefix=start.prefix,
            value=at_least_single(part.out.value),
            action_value=start.action_value,
            median=None if part.out.median is None else at_least_single(part.out.median),
        )
        surrogate = self._surrogate(x)
        keep = self._kept(x, start)
        if keep is not None:
            surrogate = batch_rules.masked(surrogate, keep)
        if self.dual is not None and surrogate.constraint is not None:
            rows = batch.valid.sum()
            self.dual.observe(surrogate.constraint.sum() / rows.clamp(min=1))
            self.dual_rows.copy_(rows)
        terms = self._total(surrogate, part, start, entropy)
        if not report:
            return Loss(terms.total, {}, {})
        losses = {
            "losses/policy_loss": terms.policy.detach(),
            "losses/value_loss": terms.value.detach(),
            "losses/entropy": terms.entropy.detach(),
            **surrogate.metrics,
        }
        if keep is not None:
            left_out = (batch.valid & ~keep).sum() / batch.valid.sum().clamp(min=1)
            losses["losses/maskfrac"] = left_out.to(terms.policy.dtype)
        found = self._diagnostics(x, surrogate, start)
        return Loss(terms.total, losses, found, joint=self._joint(x, start, found))

    def _start_of(self, part: Minibatch, start: ActorCriticStart) -> ActorCriticStart:
        """The start with the rows of a minibatch, in the tensors that the loss reads."""
        if part.lanes is None:
            return start
        whole = {name: getattr(start, name) for name in READ_BY_LOSS}
        return start._replace(**{n: x.index_select(1, part.lanes) for n, x in whole.items() if x is not None})

    def _proximal(self, part: Minibatch, log_prob: Tensor) -> tuple[Tensor, Tensor | None]:
        """log pi_proximal [T, b] of the minibatch's actions and its parameters [T, b, K], detached."""

        def evaluate(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            params = self.evaluate(weights, part).params
            return self.distribution.log_prob(params, part.batch.action), params

        batch = part.batch
        return self.proximal.log_prob(evaluate, part.lanes, log_prob, batch.log_prob, batch.lag)

    def _surrogate(self, x: SurrogateInput) -> Surrogate:
        settings = self.config.surrogate
        options = Options.read(settings)
        return self.surrogate(x, behavior_weight=settings.behavior_weight, **options)

    def _kept(self, x: SurrogateInput, start: ActorCriticStart) -> Tensor | None:
        """[T, b] bool, the samples that `surrogate.mask` keeps; None: all."""
        settings = self.config.surrogate
        if settings.mask == "erc":
            return batch_rules.within_entropy_ratio(x, settings.entropy_ratio_low, settings.entropy_ratio_high)
        return start.keep

    def _total(self, surrogate: Surrogate, part: Minibatch, start: ActorCriticStart, entropy: Tensor) -> LossTerms:
        return total_loss(
            surrogate,
            at_least_single(part.out.value),
            start.target,
            entropy,
            part.batch.valid,
            value_coef=self.config.loss.value_coef,
            entropy_coef=self.entropy_coef,
            old_value=start.value,
            value_clip=self.config.loss.value_clip or None,
            value_error=self._histogram_error(part, start),
            num_valid=part.num_valid,
        )

    def _histogram_error(self, part: Minibatch, start: ActorCriticStart) -> Tensor | None:
        """Loss of the value [T, b] where it is the expectation over bins; None: the squared error."""
        if self.bins is None:
            return None
        assert part.out.value_logits is not None, "a network with bins has logits of them"
        return histogram_error(
            at_least_single(part.out.value_logits),
            start.target,
            part.batch.valid,
            low=self.bins.low,
            high=self.bins.high,
            sigma=self.config.loss.value_sigma,
        )

    def _diagnostics(self, x: SurrogateInput, surrogate: Surrogate, start: ActorCriticStart) -> dict[str, Tensor]:
        """Metric name -> []."""
        d = diagnostics(
            x,
            surrogate,
            start.value,
            start.target,
            rho_bar=self.config.trace.rho_bar,
            c_bar=self.config.trace.c_bar,
            log_rho=start.log_rho,
            effective_lambda=start.effective_lambda,
        )
        row = {
            "losses/approx_kl": d["approx_kl"],
            "losses/clipfrac": d["clipfrac"],
            "losses/explained_variance": d["explained_variance"],
            ESS_METRIC: d["ess"],
            "offpolicy/kl_behavior_proximal": d["kl_behavior_proximal"],
            "offpolicy/kl_proximal_policy": d["kl_proximal_policy"],
            "offpolicy/rho_clip_fraction": d["rho_clip_fraction"],
            "offpolicy/c_clip_fraction": d["c_clip_fraction"],
            "offpolicy/effective_lambda": start.effective_lambda,
            "offpolicy/max_abs_log_rho": start.log_rho.abs().max(),
        }
        if start.outside is not None:
            row["losses/value_outside"] = start.outside
        # The same weights in two workers: what is left of the difference is rounding.
        if self.config.proximal.by_step:
            difference = (x.proximal - x.behavior).masked_fill(~x.valid, 0.0).abs()
            row["offpolicy/discrepancy"] = difference.sum() / x.valid.sum().clamp(min=1)
            row["offpolicy/max_discrepancy"] = difference.max()
        return row

    def _joint(self, x: SurrogateInput, start: ActorCriticStart, found: Mapping[str, Tensor]) -> dict[str, Joint]:
        """How several learners compute the metrics `found` that are no mean over the rows of the minibatch."""

        def of_update(name: str) -> Joint:  # over all rows of the update
            return Joint(lambda: joint.row_mean(found[name], start.valid), joint.whole_mean)

        whole = ("offpolicy/effective_lambda", "losses/value_outside")
        return {
            ESS_METRIC: Joint(lambda: joint.weight_sums(x.log_prob - x.behavior, x.valid), joint.sample_size),
            "losses/explained_variance": Joint(
                lambda: joint.fit_moments(start.value, start.target, x.valid), joint.fit
            ),
            **{name: of_update(name) for name in whole if name in found},
        }

    def after_step(self, skipped: Tensor) -> None:
        self.proximal.after_step(self.model, skipped)
        if self.dual is not None:
            mean = self.normalizers.learners.average_metric(self.dual.observed, self.dual_rows)
            self.dual.step(mean, skipped)

    @torch.no_grad()
    def kl_of_update(self, batch: Batch, start: ActorCriticStart, out: Output) -> Tensor:
        kl = self.distribution.kl(start.params, out.params).masked_fill(~batch.valid, 0.0)
        return kl.sum() / batch.valid.sum().clamp(min=1)

    @torch.no_grad()
    def entropy_at_start(self, batch: Batch, start: ActorCriticStart) -> Tensor:
        entropy = self.distribution.entropy(start.params).masked_fill(~batch.valid, 0.0)
        return entropy.sum() / batch.valid.sum().clamp(min=1)

    def row(self) -> Mapping[str, float]:
        row = {} if self.decay is None else {"proximal/decay": self.decay}
        if isinstance(self.entropy_coef, Tensor):
            row["charts/entropy_coef"] = float(self.entropy_coef)  # once per row: it waits for the device
        return row

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        dual = {} if self.dual is None else {DUAL + name: x for name, x in self.dual.state_dict().items()}
        return {**self.proximal.state_dict(), **dual}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        dual = {name.removeprefix(DUAL): x for name, x in state.items() if name.startswith(DUAL)}
        state = {name: x for name, x in state.items() if not name.startswith(DUAL)}
        if self.dual is not None and dual:  # the settings may have changed: state of another kind is ignored
            self.dual.load_state_dict(dual)
        if self.proximal.wants(state):
            device = next(self.model.parameters()).device
            self.proximal.load_state_dict({name: x.to(device) for name, x in state.items()})

    def reset(self) -> None:
        self.proximal.reset(self.model)
        if self.dual is not None:
            self.dual.reset()


def value_bins(config: Config) -> ValueBins | None:
    """Bins of the value head by the settings of a run; None: the value is one number."""
    settings = config.model
    if settings.value_head == "scalar":
        return None
    return ValueBins(settings.value_low, settings.value_high, settings.value_bins)
