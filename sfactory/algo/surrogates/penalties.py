"""Objectives with a penalty on the distance to the proximal policy instead of a clip."""

from torch import Tensor

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import Ratios


def decoupled_kl(q: Ratios, o: Options) -> Tensor:
    """Decoupled KL penalty (arXiv 2110.00641, eq. 4): loss = -w * A + kl_coef * KL(proximal || policy).

    Exact if the proximal policy has a distribution, else 0.5 * (log r)^2 as in openai/ppo-ewma.
    """
    return o.kl_coef * _penalty(q, reverse=False) - q.w * q.advantage


def mdpo(q: Ratios, o: Options) -> Tensor:
    """Mirror descent policy optimisation, on-policy form (Tomar et al. 2020, arXiv 2005.09814).

        loss = -w * A + kl_coef * KL(policy || proximal),    kl_coef = 1 / t_k

    Differs from the paper by the behavior weight; the KL has the opposite direction of `decoupled_kl`.
    """
    return o.kl_coef * _penalty(q, reverse=True) - q.w * q.advantage


def _penalty(q: Ratios, *, reverse: bool) -> Tensor:
    """[...] KL(proximal || policy), or KL(policy || proximal) if ``reverse``; 0.5 (log r)^2 if not known."""
    x = q.inputs
    if x.proximal_params is None or x.params is None or x.distribution is None:
        return 0.5 * q.log_r.square()
    center = x.proximal_params.detach()
    return x.distribution.kl(x.params, center) if reverse else x.distribution.kl(center, x.params)
