"""Objectives with a penalty on the distance to the proximal policy instead of a clip."""

import torch
from torch import Tensor

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import LOG_WEIGHT_LIMIT, Ratios, Surrogate


def decoupled_kl(q: Ratios, o: Options) -> Tensor:
    """Decoupled KL penalty (arXiv 2110.00641, eq. 4): loss = -w * A + kl_coef * KL(proximal || policy).

    Exact if the proximal policy has a distribution, else 0.5 * (log r)^2 as in openai/ppo-ewma.
    """
    return o.kl_coef * _penalty(q, reverse=False) - q.w * q.advantage


def mdpo(q: Ratios, o: Options) -> Tensor:
    """Mirror descent policy optimisation, on-policy form (Tomar et al. 2020, arXiv 2005.09814).

        loss = -w * A + kl_coef / t_k * KL(policy || proximal)

    With ``kl_anneal`` t_k falls linearly from 1 to 0 over the run, as in the paper (``annealing`` is 1 / t_k), else it
    is 1. Differs from the paper by the behavior weight; the KL has the opposite direction of `decoupled_kl`.
    """
    penalty = o.kl_coef * _penalty(q, reverse=True)
    if o.kl_anneal and q.inputs.annealing is not None:
        penalty = q.inputs.annealing * penalty
    return penalty - q.w * q.advantage


def opmd(q: Ratios, o: Options) -> Tensor:
    """Online policy mirror descent of Kimi k1.5 (arXiv 2501.12599, and 2509.24203).

        loss = -w_b * A * log policy + log_ratio_coef * (log r)^2

    No mask and no ratio as a weight; the square pulls the policy back. The behavior weight is our addition.
    """
    return o.log_ratio_coef * q.log_r.square() - q.log_w_b.exp() * q.advantage * q.log_prob


def r2vpo(q: Ratios, o: Options) -> Surrogate:
    """R2VPO (arXiv 2601.03320): a bound on the variance of r, by a dual variable (`dual.DualVariable`).

        loss = -w * A + dual * w_b * (r - 1)^2,    mean of w_b * (r - 1)^2 <= variance_target

    (r - 1)^2 is about twice the KL where r is near 1. With proximal = behavior it is the published form.
    """
    assert q.inputs.dual is not None, "r2vpo needs its dual variable"
    variance = q.log_w_b.exp() * torch.expm1(q.log_r.clamp(max=LOG_WEIGHT_LIMIT)).square()
    loss = q.inputs.dual * variance - q.w * q.advantage
    constraint = variance.detach().masked_fill(~q.inputs.valid, 0.0)
    now = q.inputs.dual.to(q.w.dtype, copy=True)  # the variable itself moves before the metric is read
    return Surrogate(loss, q.clipped, constraint=constraint, metrics={"losses/dual": now})


def _penalty(q: Ratios, *, reverse: bool) -> Tensor:
    """[...] KL(proximal || policy), or KL(policy || proximal) if ``reverse``; 0.5 (log r)^2 if not known."""
    x = q.inputs
    if x.proximal_params is None or x.params is None or x.distribution is None:
        return 0.5 * q.log_r.square()
    center = x.proximal_params.detach()
    return x.distribution.kl(x.params, center) if reverse else x.distribution.kl(center, x.params)
