"""Objectives with a clipped ratio: PPO and its relatives."""

import math

import torch
from torch import Tensor

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import Ratios, log_interval


def decoupled(q: Ratios, o: Options) -> Tensor:
    """Decoupled PPO clip (Hilton et al. 2021, arXiv 2110.00641, eq. 3; openai/ppo-ewma `compute_losses`).

        loss = -w_b * min(r * A, clip(r, 1 - clip, 1 + clip) * A)

    The gradient in log_prob is -w * A where not clipped: proximal affects only the mask. With proximal = behavior it is
    PPO. ``dual_clip`` c (arXiv 1912.09729) bounds the loss of negative advantages by -c * A * w_b, where PPO's own clip
    has no effect; c > 1.
    """
    bounded = torch.exp(q.log_r.clamp(*log_interval(o.clip)) + q.log_w_b)
    loss = torch.maximum(-q.advantage * q.w, -q.advantage * bounded)
    if o.dual_clip:
        ceiling = -q.advantage * torch.exp(q.log_w_b + math.log(o.dual_clip))
        loss = torch.where(q.advantage < 0, torch.minimum(loss, ceiling), loss)
    return loss


def ppo(q: Ratios, o: Options) -> Tensor:
    """PPO clip (Schulman et al. 2017, arXiv 1707.06347, eq. 7): the ratio over proximal, no behavior weight.

    Coupled PPO with proximal = behavior. With another proximal policy the weight is that of the trace, or absent.
    """
    return decoupled(q, o)
