"""Objectives with a clipped ratio: PPO and its relatives."""

import math

import torch
from torch import Tensor

from sfactory.algo.surrogates.batch_rules import balanced_bounds
from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import LOG_WEIGHT_LIMIT, Ratios, Surrogate, log_interval


def decoupled(q: Ratios, o: Options) -> Tensor:
    """Decoupled PPO clip (Hilton et al. 2021, arXiv 2110.00641, eq. 3; openai/ppo-ewma `compute_losses`).

        loss = -w_b * min(r * A, clip(r, 1 - clip, 1 + clip) * A)

    The gradient in log_prob is -w * A where not clipped: proximal affects only the mask. With proximal = behavior it is
    PPO. ``dual_clip`` c (arXiv 1912.09729) bounds the loss of negative advantages by -c * A * w_b, where PPO's own clip
    has no effect; c > 1.
    """
    bounded = torch.exp(q.log_r.clamp(*log_interval(o.clip)) + q.log_w_b)
    return _dual_clip(torch.maximum(-q.advantage * q.w, -q.advantage * bounded), q, o)


def ppo(q: Ratios, o: Options) -> Tensor:
    """PPO clip (Schulman et al. 2017, arXiv 1707.06347, eq. 7): the ratio over proximal, no behavior weight.

    Coupled PPO with proximal = behavior. With another proximal policy the weight is that of the trace, or absent.
    """
    return decoupled(q, o)


def geppo(q: Ratios, o: Options) -> Surrogate:
    """GePPO (Queeney et al. 2021, arXiv 2111.00565; jqueeney/geppo): an additive clip of w around w_b.

        loss = -min(w * A, clip(w, w_b - clip, w_b + clip) * A)

    Mix-PPG of ReMix (arXiv 2507.06892) has the same policy loss. PPO where w_b is 1; a sample that behavior took more
    often than proximal (w_b < 1) has more room in r than with `decoupled`, others have less. GePPO's weights of
    policies by age, its V-trace and its adaptive learning rate are not part of it.
    """
    w_b = q.log_w_b.exp()
    bounded = torch.clamp(q.w, w_b - o.clip, w_b + o.clip)
    outside = (q.w.detach() - w_b).abs() > o.clip
    return Surrogate(torch.maximum(-q.advantage * q.w, -q.advantage * bounded), outside & q.inputs.valid)


def bapo(q: Ratios, o: Options) -> Surrogate:
    """BAPO (arXiv 2510.18927; WooooDyy/BAPO): PPO with bounds of r that the minibatch moves (`balanced_bounds`).

        loss = -w_b * min(r * A, clip(r, low, high) * A)

    The paper adds ``dual_clip`` 3. ``clipped`` marks r outside the bounds found.
    """
    low, high = balanced_bounds(q.log_r.detach().clamp(max=LOG_WEIGHT_LIMIT).exp(), q.advantage, o)
    log_low, log_high = low.log(), high.log()
    bounded = torch.exp(torch.clamp(q.log_r, log_low, log_high) + q.log_w_b)
    loss = _dual_clip(torch.maximum(-q.advantage * q.w, -q.advantage * bounded), q, o)
    outside = (q.log_r < log_low) | (q.log_r > log_high)
    return Surrogate(loss, outside & q.inputs.valid, metrics={"losses/bound_low": low, "losses/bound_high": high})


def _dual_clip(loss: Tensor, q: Ratios, o: Options) -> Tensor:
    """The loss, at most -dual_clip * A * w_b where A < 0."""
    if not o.dual_clip:
        return loss
    ceiling = -q.advantage * torch.exp(q.log_w_b + math.log(o.dual_clip))
    return torch.where(q.advantage < 0, torch.minimum(loss, ceiling), loss)
