"""Policy gradients: -weight * A * log policy, with the weights and masks of several papers."""

import torch
from torch import Tensor

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import Ratios, Surrogate, log_interval


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


def dppo_kl(q: Ratios, o: Options) -> Surrogate:
    """DPPO-KL (arXiv 2602.04879): as `dppo_tv`, with the KL of "this action or another" instead of the difference.

        KL(Bernoulli(proximal) || Bernoulli(policy)) <= clip, or the sample moved against the direction of A

    The paper has cap 20.
    """
    log_policy = q.log_prob.detach()
    log_proximal = log_policy - q.log_r.detach()
    policy, proximal = (log_p.exp().clamp(max=1.0 - _SMALLEST) for log_p in (log_policy, log_proximal))
    kl = proximal * (log_proximal - log_policy) + (1.0 - proximal) * (torch.log1p(-proximal) - torch.log1p(-policy))
    back = torch.where(q.advantage > 0, log_policy <= log_proximal, log_policy >= log_proximal)
    keep = back | (kl <= o.clip)
    return Surrogate(-(q.w.detach() * keep) * q.advantage * q.log_prob, ~keep & q.inputs.valid)


def dispo(q: Ratios, o: Options) -> Tensor:
    """DISPO (arXiv 2602.00983): as `cispo`, with a lower and an upper bound of w for each sign of A.

        loss = -sg(clip(w, low, high)) * A * log policy

    Bounds: weight_low and weight_high where A > 0, else weight_low_negative and weight_high_negative. The paper writes
    them as 1 - 0.2 and 1 + 10, 1 - 1 and 1 + 100.
    """
    w = q.w.detach()
    positive = w.clamp(o.weight_low, o.weight_high)
    negative = w.clamp(o.weight_low_negative, o.weight_high_negative)
    return -torch.where(q.advantage > 0, positive, negative) * q.advantage * q.log_prob


def rec_one_side(q: Ratios, o: Options) -> Surrogate:
    """REC, one-side (arXiv 2509.24203; Trinity-RFT): the mask of PPO's clip on a plain policy gradient.

        loss = -sg(w) * A * log policy, 0 where A > 0 and r > 1 + clip, or A < 0 and r < 1 - clip

    Without ``ratio_weight`` the weight is w_b instead of w: the paper's finding is that the mask matters, the ratio as
    a weight does not. The gradient with it is that of `decoupled`.
    """
    return _rec(q, o, _inward(q, *log_interval(o.clip)))


def rec_wide(q: Ratios, o: Options) -> Surrogate:
    """REC with wide bounds: as `rec_one_side`, with r between 1 - outer_low and 1 + outer_high."""
    return _rec(q, o, _inward(q, *log_interval(o.outer_low, o.outer_high)))


def rec_ring(q: Ratios, o: Options) -> Surrogate:
    """REC-Ring: samples inside the clip, and those far outside that pull r back.

        kept: |r - 1| <= clip, or A >= 0 and r <= 1 - outer_low, or A <= 0 and r >= 1 + outer_high

    The rest as in `rec_one_side`.
    """
    (low, high), (far_low, far_high) = log_interval(o.clip), log_interval(o.outer_low, o.outer_high)
    log_r = q.log_r.detach()
    inside = (log_r >= low) & (log_r <= high)
    return _rec(q, o, inside | torch.where(q.advantage >= 0, log_r <= far_low, log_r >= far_high))


def asymre(q: Ratios, o: Options) -> Tensor:
    """Asymmetric REINFORCE (arXiv 2506.20520): a lowered baseline, loss = -w_b * (A + baseline_shift) * log policy.

    On stale data good actions are imitated more than bad ones are avoided. No ratio over the proximal policy; the
    behavior weight is our addition.
    """
    shift = o.baseline_shift if q.trace_weight is None else o.baseline_shift * q.trace_weight
    return -q.log_w_b.exp() * (q.advantage + shift) * q.log_prob


def minpro(q: Ratios, o: Options) -> Tensor:
    """MinPRO (arXiv 2601.22718): loss = -sg(min(w, cap) * m) * A * log policy.

    m is the smallest rho of the steps of the trajectory before this one (`batch_rules.prefix_minimum`), in the place
    of their product: the exact correction for states that the policy reaches less often than behavior did.
    """
    assert q.inputs.prefix is not None, "minpro needs the prefix of the trajectory"
    prefix = q.inputs.prefix.masked_fill(~q.inputs.valid, 1.0)
    return -(q.w.detach() * prefix) * q.advantage * q.log_prob


_SMALLEST = 1e-6  # probability of all other actions, in `dppo_kl`


def _inward(q: Ratios, low: float, high: float) -> Tensor:
    """[...] bool: r is not beyond a bound in the direction of A."""
    log_r = q.log_r.detach()
    return torch.where(q.advantage >= 0, log_r <= high, log_r >= low)


def _rec(q: Ratios, o: Options, keep: Tensor) -> Surrogate:
    """The policy gradient of the samples that are kept."""
    weight = q.w.detach() if o.ratio_weight else q.log_w_b.exp()
    return Surrogate(-(weight * keep) * q.advantage * q.log_prob, ~keep & q.inputs.valid)
