"""Input of an objective: one minibatch and the ratios of its three policies, safe on reset rows.

Shapes: [...] is [N] or [T, b], the same for all; K distribution parameters.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LOG_WEIGHT_LIMIT = 20.0  # the same bound as in the traces: no exponential here exceeds e^20


class Distribution(Protocol):
    @property
    def discrete(self) -> bool:
        """Whether all actions are discrete: entropies are positive."""

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """p, q [..., K] -> KL(p || q) [...]."""

    def entropy(self, params: Tensor) -> Tensor:
        """params [..., K] -> entropy [...], in nats."""


class SurrogateInput(NamedTuple):
    """One minibatch as the objectives see it."""

    log_prob: Tensor
    """[...] log policy of the action taken; the only tensor with a gradient, besides ``params``."""
    proximal: Tensor
    """[...] log proximal."""
    behavior: Tensor
    """[...] log behavior as stored at sampling time, never recomputed."""
    advantage: Tensor
    """[...] unweighted, usually normalized."""
    weight: Tensor
    """[...] the trace's min(pg_rho_bar, rho); used when behavior_weight is trace or twice."""
    valid: Tensor
    """[...] bool, False on reset rows."""
    params: Tensor | None = None
    """[..., K] parameters of the policy's distribution, with gradient."""
    proximal_params: Tensor | None = None
    """[..., K], or None if the proximal policy has no distribution (interpolate)."""
    behavior_params: Tensor | None = None
    """[..., K] as stored at sampling time."""
    distribution: Distribution | None = None
    """Computes the exact KL of two sets of parameters, and entropies."""
    annealing: Tensor | None = None
    """[] factor of the KL coefficient of mdpo; None: 1."""
    dual: Tensor | None = None
    """[] dual variable of r2vpo, at least 0."""
    prefix: Tensor | None = None
    """[...] minpro: `batch_rules.prefix_minimum` of the trajectory before the step."""
    value: Tensor | None = None
    """[...] bpo: output of the value head."""
    action_value: Tensor | None = None
    """[...] bpo: estimate of Q in units of the value head's output, constant in the gradient."""
    median: Tensor | None = None
    """[...] bpo: output of the median head, with gradient; None if there is none."""


class Surrogate(NamedTuple):
    """Result of an objective."""

    loss: Tensor
    """[...] per sample, unreduced, 0 on reset rows."""
    clipped: Tensor
    """[...] bool: r outside [1 - clip, 1 + clip] on a valid row (openai/ppo-ewma's clipfrac), unless the objective has
    a clip rule of its own."""
    critic: Tensor | None = None
    """[...] further loss of the critic's heads, which `loss.total_loss` multiplies by the value coefficient."""
    constraint: Tensor | None = None
    """[...] detached: the quantity whose mean the dual variable bounds."""
    metrics: Mapping[str, Tensor] = {}
    """Metric name -> [], of objectives that adapt to the minibatch."""


class Ratios(NamedTuple):
    """Everything an objective needs, safe on reset rows. All [...]; only log_prob, log_r and w carry a gradient."""

    log_prob: Tensor
    """log policy, 0 on reset rows."""
    log_r: Tensor
    """log(policy / proximal)."""
    w: Tensor
    """policy / anchor (behavior or proximal), at most weight_cap; gradient flows through capped samples."""
    log_w_b: Tensor
    """log(proximal / lifted anchor)."""
    advantage: Tensor
    """Advantage, times the trace's weight if ``behavior_weight`` selects it; 0 on reset rows."""
    clipped: Tensor
    """bool, r outside [1 - clip, 1 + clip]."""
    inputs: SurrogateInput
    """The minibatch itself."""
    trace_weight: Tensor | None
    """The trace's weight if ``behavior_weight`` selects it; None: 1."""


def compute_ratios(x: SurrogateInput, behavior_weight: str, clip: float, weight_cap: float | None) -> Ratios:
    """Ratios of one minibatch.

    The cap lifts the anchor, as in openai/ppo-ewma: anchor' = max(anchor, sg(log_prob) - log cap). So w <= cap, and a
    capped sample keeps a gradient of size cap; a clamp would remove it.
    """
    reset = ~x.valid
    anchor = x.behavior if behavior_weight in ("surrogate", "twice") else x.proximal
    log_prob = x.log_prob.masked_fill(reset, 0.0)
    proximal = x.proximal.masked_fill(reset, 0.0)
    anchor = torch.maximum(anchor.masked_fill(reset, 0.0), log_prob.detach() - log_cap(weight_cap))
    trace_weight = x.weight if behavior_weight in ("trace", "twice") else None
    advantage = x.advantage if trace_weight is None else x.advantage * trace_weight
    log_r = log_prob - proximal
    low, high = log_interval(clip)
    clipped = (log_r > high) | (log_r < low)
    return Ratios(
        log_prob=log_prob,
        log_r=log_r,
        w=torch.exp(log_prob - anchor),
        log_w_b=(proximal - anchor).clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT),
        advantage=advantage.masked_fill(reset, 0.0),
        clipped=clipped,
        inputs=x,
        trace_weight=trace_weight,
    )


def log_cap(weight_cap: float | None) -> float:
    """Logarithm of the largest weight; None and 0: no cap but the one of every exponential."""
    return LOG_WEIGHT_LIMIT if not weight_cap else min(math.log(weight_cap), LOG_WEIGHT_LIMIT)


def log_interval(clip: float, above: float | None = None) -> tuple[float, float]:
    """log(1 - clip), log(1 + above); a clip of 1 or more has no lower bound. above: None if it is equal to clip."""
    return math.log1p(-clip) if clip < 1.0 else -math.inf, math.log1p(clip if above is None else above)
