"""Slopes of the loss of `decoupled` and `ppo` by formula, without recording and differentiating it.

The loss is that of `clipped.decoupled` and `loss.total_loss`; the tests hold the slopes to what autograd computes
from those. About 25 small operations instead of 60 and their derivatives.

Where two arguments of a maximum or minimum are equal, autograd gives each half of the gradient. Here one of them gets
all of it. Both are the same wherever both arguments have the same slope: inside the clip, the usual tie, which every
sample of the first minibatch of an on-policy update is in. Elsewhere a tie is a coincidence of rounding.

Shapes: [...] is [N] or [T, b], the same for all. Call everything here within `torch.no_grad`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sfactory.algo.surrogates.clipped import decoupled, ppo
from sfactory.algo.surrogates.ratios import LOG_WEIGHT_LIMIT, log_cap, log_interval
from sfactory.algo.surrogates.registry import SURROGATES


def has_slopes(objective: str) -> bool:
    """Whether the formulas here are those of an entry of `SURROGATES`."""
    return SURROGATES[objective].loss in (decoupled, ppo)


class Rows(NamedTuple):
    """What the loss of a row is computed from besides the network's outputs; constant in the gradient. All [...]."""

    behavior: Tensor
    """log behavior, 0 on reset rows."""
    gain: Tensor
    """-advantage, times the trace's weight if the behavior weight is applied there; 0 on reset rows."""
    value: Tensor
    """Value at the start of the update."""
    target: Tensor
    valid: Tensor
    """1.0, and 0.0 on reset rows."""
    proximal: Tensor | None = None
    """log proximal, 0 on reset rows; None if it changes within an update."""


class Slopes(NamedTuple):
    """Derivatives of the total loss with respect to what a row's loss depends on. All [...], 0 on reset rows."""

    log_prob: Tensor
    entropy: Tensor
    value: Tensor


def pack(
    *,
    behavior: Tensor,
    proximal: Tensor | None,
    advantage: Tensor,
    weight: Tensor,
    value: Tensor,
    target: Tensor,
    valid: Tensor,
    behavior_weight: str,
) -> Tensor:
    """All `Rows` of an update in one tensor [..., C], so that a minibatch selects its rows with one call.

    behavior, proximal, advantage, weight (of the trace), value, target: [...] float; valid: [...] bool. proximal: None
    if it changes within the update. behavior_weight: as in `surrogates`.
    """
    reset = ~valid
    if behavior_weight in ("trace", "twice"):
        advantage = advantage * weight
    columns = [column.masked_fill(reset, 0.0) for column in (behavior, -advantage, value, target)]
    columns.append(valid.to(value.dtype))
    if proximal is not None:
        columns.append(proximal.masked_fill(reset, 0.0))
    return torch.stack(columns, -1)


def unpack(packed: Tensor) -> Rows:
    """The columns of rows [..., C] that `pack` made, each contiguous."""
    return Rows(*packed.movedim(-1, 0).contiguous().unbind(0))


def loss_slopes(
    log_prob: Tensor,
    value: Tensor,
    proximal: Tensor,
    rows: Rows,
    *,
    objective: str,
    behavior_weight: str,
    clip: float,
    dual_clip: float | None,
    weight_cap: float | None,
    value_coef: float,
    value_clip: float | None,
    entropy_coef: float | Tensor,
    num_valid: Tensor | None = None,
) -> Slopes:
    """Slopes of `loss.total_loss` of one minibatch, or of a part of it.

    Args:
        log_prob, value, proximal: [...] log policy of the actions, value and log proximal under the present weights.
        rows: the rest, see `Rows`.
        objective: decoupled or ppo.
        behavior_weight, clip, dual_clip, weight_cap: as in `surrogates`.
        value_coef, value_clip, entropy_coef, num_valid: as in `loss.total_loss`.
    """
    share = rows.valid / (rows.valid.sum() if num_valid is None else num_valid).clamp(min=1.0)
    at_behavior = SURROGATES[objective].own_weight(behavior_weight) in ("surrogate", "twice")
    anchor = rows.behavior if at_behavior else proximal
    gain = share * rows.gain
    return Slopes(
        log_prob=_policy_slope(log_prob, proximal, anchor, gain, clip, dual_clip, weight_cap),
        entropy=-entropy_coef * share,
        value=2.0 * value_coef * share * _value_error(value, rows.target, rows.value, value_clip),
    )


def _policy_slope(
    log_prob: Tensor,
    proximal: Tensor,
    anchor: Tensor,
    gain: Tensor,
    clip: float,
    dual_clip: float | None,
    weight_cap: float | None,
) -> Tensor:
    """Derivative of the surrogate loss with respect to log_prob [...]; names as in `clipped.decoupled`.

    gain [...]: -advantage, divided by the number of valid rows. Every term is gain * exp(log_prob + constant), so its
    slope is the term itself, or 0 where it is constant: outside the clip, and at the bound of ``dual_clip``.
    """
    log_w = (log_prob - anchor).clamp_(max=log_cap(weight_cap))
    log_r = log_prob - proximal
    inside = log_r.clamp(*log_interval(clip))
    log_w_b = (log_w - log_r).clamp_(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT)
    free = gain * log_w.exp()
    bounded = gain * torch.exp(inside + log_w_b)
    slope = torch.where(free > bounded, free, bounded * (inside == log_r))
    if dual_clip:
        ceiling = gain * torch.exp(log_w_b + math.log(dual_clip))
        slope = slope.masked_fill((gain > 0) & (slope > ceiling), 0.0)
    return slope


def _value_error(value: Tensor, target: Tensor, old_value: Tensor, value_clip: float | None) -> Tensor:
    """Half the derivative of the squared error of the value with respect to the value [...]."""
    error = value - target
    if not value_clip:
        return error
    change = value - old_value
    held = change.clamp(-value_clip, value_clip)
    clipped = old_value + held - target
    return torch.where(error.abs() >= clipped.abs(), error, clipped * (held == change))
