"""What an objective is given: one minibatch, and the ratios of its three policies, safe on reset rows.

Shapes: [...] is [N] or [T, b], the same for all; K distribution parameters.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LOG_WEIGHT_LIMIT = 20.0  # the same bound as in the traces: no exponential here exceeds e^20


class Divergence(Protocol):
    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """p, q [..., K] -> KL(p || q) [...]."""


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
    distribution: Divergence | None = None
    """Computes the exact KL of two sets of parameters."""


class Surrogate(NamedTuple):
    """Result of an objective."""

    loss: Tensor
    """[...] per sample, unreduced, 0 on reset rows."""
    clipped: Tensor
    """[...] bool: r outside [1 - clip, 1 + clip] on a valid row (openai/ppo-ewma's clipfrac), unless the objective has
    a clip rule of its own."""


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
    advantage = x.advantage * x.weight if behavior_weight in ("trace", "twice") else x.advantage
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
    )


def log_cap(weight_cap: float | None) -> float:
    """Logarithm of the largest weight; None and 0: no cap but the one of every exponential."""
    return LOG_WEIGHT_LIMIT if not weight_cap else min(math.log(weight_cap), LOG_WEIGHT_LIMIT)


def log_interval(clip: float) -> tuple[float, float]:
    """log(1 - clip), log(1 + clip); a clip of 1 or more has no lower bound."""
    return math.log1p(-clip) if clip < 1.0 else -math.inf, math.log1p(clip)
