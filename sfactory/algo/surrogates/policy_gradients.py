"""Policy gradients: -weight * A * log policy, with the weights and masks of several papers."""

import torch
from torch import Tensor

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import Ratios, Surrogate


def impala(q: Ratios, o: Options) -> Tensor:
    """Policy gradient of IMPALA (Espeholt et al. 2018, arXiv 1802.01561, sec. 4.2): loss = -weight * A * log policy.

    The weight is that of the trace. Differs from the paper by the mean over samples instead of the sum.
    """
    return -q.advantage * q.log_prob


def is_pg(q: Ratios, o: Options) -> Tensor:
    """Importance-sampled policy gradient, no trust region: loss = -sg(min(w, cap)) * A * log policy."""
    return -q.w.detach() * q.advantage * q.log_prob


def cispo(q: Ratios, o: Options) -> Tensor:
    """CISPO (MiniMax-M1, arXiv 2506.13585): loss = -sg(min(w, 1 + clip)) * A * log policy.

    Truncated importance sampling: no sample loses its gradient. No lower bound, as in the published runs.
    """
    return -q.w.detach().clamp(max=1.0 + o.clip) * q.advantage * q.log_prob


def topr(q: Ratios, o: Options) -> Tensor:
    """TOPR (arXiv 2503.14286): loss = -sg(c) * A * log policy, c = 1 for A >= 0 and min(w, 1) for A < 0."""
    weight = torch.where(q.advantage >= 0, 1.0, q.w.detach().clamp(max=1.0))
    return -weight * q.advantage * q.log_prob


def dppo_tv(q: Ratios, o: Options) -> Surrogate:
    """DPPO-TV (arXiv 2602.04879): a trust region on the *difference* of probabilities; discrete actions only.

        loss = -sg(min(w, cap)) * A * log policy, 0 where policy - proximal exceeds clip in the direction of A

    ``clipped`` marks the samples whose loss is 0 by this rule. The paper has clip 0.15 and cap 20.
    """
    log_prob = q.log_prob.detach()
    moved = torch.exp(log_prob) - torch.exp(log_prob - q.log_r.detach())
    keep = torch.where(q.advantage > 0, moved <= o.clip, moved >= -o.clip)
    return Surrogate(-(q.w.detach() * keep) * q.advantage * q.log_prob, ~keep & q.inputs.valid)
