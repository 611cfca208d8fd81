"""Policy objectives under stale data, as losses per sample (to be minimised; `loss.total_loss` takes the
mean).

Three policies: ``policy`` (being trained, has the gradient), ``proximal`` (centre of the trust region),
``behavior`` (acted). With log-probabilities of the action taken,

    r   = policy / proximal      the trust region is a bound on r
    w_b = proximal / behavior    behaviour weight: corrects for the data being old; constant in the gradient
    w   = policy / behavior = r * w_b

w_b belongs into the loss exactly once. Who applies it is one choice, ``behavior_weight``:

    surrogate   here, inside the ratio: the loss is anchored at behavior
    trace       the trace's clipped weight multiplies the advantage: the loss is anchored at proximal
                (IMPACT, arXiv 1912.00167)
    none        nobody (the "proximal" row of Hilton's staleness experiment)
    twice       both, as Sample Factory's V-trace + PPO does; for comparison only

`check_weights` refuses combinations that would count it twice or never without saying so.

Every objective takes ``(x: SurrogateInput, *, behavior_weight, clip, dual_clip, weight_cap, kl_coef)`` and
ignores options it has no use for; a bound that is None or 0 is off. Shapes: [...] is [N] or [T, b], the same
for all; K distribution parameters. Ratios stay in log space until the last moment; reset rows (valid False)
enter no exponential and get loss 0.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sfactory.algo.weight_rule import BEHAVIOR_WEIGHTS, check_weights

__all__ = ["BEHAVIOR_WEIGHTS", "SURROGATES", "Surrogate", "SurrogateInput", "check_weights"]

LOG_WEIGHT_LIMIT = 20.0  # the same bound as the traces': no exponential here leaves [e^-20, e^20] upwards


class Divergence(Protocol):
    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        """p, q [..., K] -> KL(p || q) [...]."""


class SurrogateInput(NamedTuple):
    log_prob: Tensor
    """[...] log policy of the action taken; the only tensor with a gradient, besides ``params``."""
    proximal: Tensor
    """[...] log proximal."""
    behavior: Tensor
    """[...] log behavior as stored when acting, never recomputed."""
    advantage: Tensor
    """[...] unweighted, usually normalised."""
    weight: Tensor
    """[...] the trace's min(pg_rho_bar, rho); used when behavior_weight is trace or twice."""
    valid: Tensor
    """[...] bool, False on reset rows."""
    params: Tensor | None = None
    """[..., K] parameters of the policy's distribution, with gradient."""
    proximal_params: Tensor | None = None
    """[..., K] or None where the proximal policy has no distribution (interpolate)."""
    behavior_params: Tensor | None = None
    """[..., K] as stored when acting."""
    distribution: Divergence | None = None
    """What turns two sets of parameters into an exact KL."""


class Surrogate(NamedTuple):
    loss: Tensor
    """[...] per sample, unreduced, 0 on reset rows."""
    clipped: Tensor
    """[...] bool: r outside [1 - clip, 1 + clip] on a valid row, whatever the objective (openai/ppo-ewma's
    clipfrac)."""


class _Ratios(NamedTuple):
    """Everything the objectives need, safe on reset rows. All [...]; only log_prob, log_r and w carry a
    gradient."""

    log_prob: Tensor
    log_r: Tensor  # over proximal
    w: Tensor  # over the anchor (behavior or proximal), at most weight_cap, where gradient still flows
    log_w_b: Tensor  # of proximal over the lifted anchor
    advantage: Tensor  # with the trace's weight where that is asked for
    clipped: Tensor


def _ratios(x: SurrogateInput, behavior_weight: str, clip: float, weight_cap: float | None) -> _Ratios:
    """Ratios of one minibatch.

    The cap lifts the anchor, as openai/ppo-ewma does: anchor' = max(anchor, sg(log_prob) - log cap). So w <=
    cap, and a capped sample keeps a gradient of size cap instead of losing it to a clamp.
    """
    reset = ~x.valid
    anchor = x.behavior if behavior_weight in ("surrogate", "twice") else x.proximal
    log_prob = x.log_prob.masked_fill(reset, 0.0)
    proximal = x.proximal.masked_fill(reset, 0.0)
    log_cap = LOG_WEIGHT_LIMIT if not weight_cap else min(math.log(weight_cap), LOG_WEIGHT_LIMIT)
    anchor = torch.maximum(anchor.masked_fill(reset, 0.0), log_prob.detach() - log_cap)
    advantage = x.advantage * x.weight if behavior_weight in ("trace", "twice") else x.advantage
    log_r = log_prob - proximal
    low, high = _log_interval(clip)
    clipped = (log_r > high) | (log_r < low)
    return _Ratios(
        log_prob=log_prob,
        log_r=log_r,
        w=torch.exp(log_prob - anchor),
        log_w_b=(proximal - anchor).clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT),
        advantage=advantage.masked_fill(reset, 0.0),
        clipped=clipped,
    )


def _log_interval(clip: float) -> tuple[float, float]:
    """log(1 - clip), log(1 + clip); a clip of 1 or more is open below."""
    return math.log1p(-clip) if clip < 1.0 else -math.inf, math.log1p(clip)


def decoupled(
    x: SurrogateInput,
    *,
    behavior_weight: str = "surrogate",
    clip: float = 0.2,
    dual_clip: float | None = None,
    weight_cap: float | None = 100.0,
    **unused: Any,
) -> Surrogate:
    """Decoupled PPO clip (Hilton et al. 2021, arXiv 2110.00641, eq. 3; openai/ppo-ewma `compute_losses`).

        loss = -w_b * min(r * A, clip(r, 1 - clip, 1 + clip) * A)

    Its gradient in log_prob is -w * A where not clipped: proximal decides only the mask. With proximal =
    behavior it is PPO. ``dual_clip`` c (arXiv 1912.09729) bounds the loss of negative advantages by -c * A *
    w_b, where PPO's own clip does nothing; c > 1.
    """
    q = _ratios(x, behavior_weight, clip, weight_cap)
    bounded = torch.exp(q.log_r.clamp(*_log_interval(clip)) + q.log_w_b)
    loss = torch.maximum(-q.advantage * q.w, -q.advantage * bounded)
    if dual_clip:
        ceiling = -q.advantage * torch.exp(q.log_w_b + math.log(dual_clip))
        loss = torch.where(q.advantage < 0, torch.minimum(loss, ceiling), loss)
    return Surrogate(loss, q.clipped)


def ppo(x: SurrogateInput, *, behavior_weight: str = "surrogate", **options: Any) -> Surrogate:
    """PPO clip (Schulman et al. 2017, arXiv 1707.06347, eq. 7) with the ratio over proximal and no behaviour
    weight.

    Coupled PPO with proximal = behavior. With another proximal policy the weight is the trace's, or missing.
    """
    return decoupled(x, behavior_weight=_without_own(behavior_weight), **options)


def decoupled_kl(
    x: SurrogateInput,
    *,
    behavior_weight: str = "surrogate",
    clip: float = 0.2,
    weight_cap: float | None = 100.0,
    kl_coef: float = 1.0,
    **unused: Any,
) -> Surrogate:
    """Decoupled KL penalty (arXiv 2110.00641, eq. 4): loss = -w * A + kl_coef * KL(proximal || policy).

    Exact where the proximal policy has a distribution, else 0.5 * (log r)^2 as in openai/ppo-ewma.
    """
    q = _ratios(x, behavior_weight, clip, weight_cap)
    return Surrogate(_masked(kl_coef * _penalty(x, q, reverse=False) - q.w * q.advantage, x), q.clipped)


def mdpo(
    x: SurrogateInput,
    *,
    behavior_weight: str = "surrogate",
    clip: float = 0.2,
    weight_cap: float | None = 100.0,
    kl_coef: float = 1.0,
    **unused: Any,
) -> Surrogate:
    """Mirror descent policy optimisation, on-policy form (Tomar et al. 2020, arXiv 2005.09814).

        loss = -w * A + kl_coef * KL(policy || proximal),    kl_coef = 1 / t_k

    Differs by the behaviour weight; the KL's direction is the other way round than in `decoupled_kl`.
    """
    q = _ratios(x, behavior_weight, clip, weight_cap)
    return Surrogate(_masked(kl_coef * _penalty(x, q, reverse=True) - q.w * q.advantage, x), q.clipped)


def impala(
    x: SurrogateInput, *, behavior_weight: str = "trace", clip: float = 0.2, **unused: Any
) -> Surrogate:
    """Policy gradient of IMPALA (Espeholt et al. 2018, arXiv 1802.01561, sec. 4.2): loss = -weight * A * log
    policy.

    The weight is the trace's. Differs from the paper by the mean over samples instead of the sum.
    """
    q = _ratios(x, _without_own(behavior_weight), clip, None)
    return Surrogate(-q.advantage * q.log_prob, q.clipped)


def is_pg(
    x: SurrogateInput,
    *,
    behavior_weight: str = "surrogate",
    clip: float = 0.2,
    weight_cap: float | None = 100.0,
    **unused: Any,
) -> Surrogate:
    """Importance-sampled policy gradient, no trust region: loss = -sg(min(w, cap)) * A * log policy."""
    q = _ratios(x, behavior_weight, clip, weight_cap)
    return Surrogate(-q.w.detach() * q.advantage * q.log_prob, q.clipped)


def cispo(
    x: SurrogateInput,
    *,
    behavior_weight: str = "surrogate",
    clip: float = 0.2,
    weight_cap: float | None = 100.0,
    **unused: Any,
) -> Surrogate:
    """CISPO (MiniMax-M1, arXiv 2506.13585): loss = -sg(min(w, 1 + clip)) * A * log policy.

    Truncated importance sampling: no sample loses its gradient. No lower bound, as in the published runs.
    """
    q = _ratios(x, behavior_weight, clip, weight_cap)
    return Surrogate(-q.w.detach().clamp(max=1.0 + clip) * q.advantage * q.log_prob, q.clipped)


def topr(
    x: SurrogateInput, *, behavior_weight: str = "surrogate", clip: float = 0.2, **unused: Any
) -> Surrogate:
    """TOPR (arXiv 2503.14286): loss = -sg(weight) * A * log policy, weight 1 for A >= 0 and min(w, 1) for A <
    0."""
    q = _ratios(x, behavior_weight, clip, None)
    weight = torch.where(q.advantage >= 0, 1.0, q.w.detach().clamp(max=1.0))
    return Surrogate(-weight * q.advantage * q.log_prob, q.clipped)


def dppo_tv(
    x: SurrogateInput,
    *,
    behavior_weight: str = "surrogate",
    clip: float = 0.15,
    weight_cap: float | None = 20.0,
    **unused: Any,
) -> Surrogate:
    """DPPO-TV (arXiv 2602.04879): the trust region bounds the *difference* of probabilities, so discrete
    actions only.

        loss = -sg(min(w, cap)) * A * log policy,  dropped where policy - proximal is beyond clip in A's
        direction
    """
    q = _ratios(x, behavior_weight, clip, weight_cap)
    log_prob = q.log_prob.detach()
    moved = torch.exp(log_prob) - torch.exp(log_prob - q.log_r.detach())
    keep = torch.where(q.advantage > 0, moved <= clip, moved >= -clip)
    return Surrogate(-(q.w.detach() * keep) * q.advantage * q.log_prob, ~keep & x.valid)


def sapo(
    x: SurrogateInput,
    *,
    behavior_weight: str = "surrogate",
    clip: float = 0.2,
    weight_cap: float | None = 100.0,
    temperature: float = 1.0,
    temperature_negative: float = 1.05,
    **unused: Any,
) -> Surrogate:
    """SAPO (arXiv 2511.20347): a sigmoid gate in place of the clip, loss = -w_b * 4/tau * sigmoid(tau * (r -
    1)) * A.

    tau is ``temperature`` for A > 0, ``temperature_negative`` else. The behaviour weight is our addition.
    """
    q = _ratios(x, behavior_weight, clip, weight_cap)
    tau = torch.full_like(q.w, temperature_negative).masked_fill_(q.advantage > 0, temperature)
    gate = torch.sigmoid(tau * torch.expm1(q.log_r.clamp(max=LOG_WEIGHT_LIMIT)))
    return Surrogate(-(4.0 / tau) * gate * q.log_w_b.exp() * q.advantage, q.clipped)


def mhpo(
    x: SurrogateInput,
    *,
    behavior_weight: str = "surrogate",
    clip: float = 0.2,
    weight_cap: float | None = 100.0,
    bound: float = 1.5,
    rise: tuple[float, float] = (1.5, 1.0),
    fall: tuple[float, float] = (2.0, 0.8),
    **unused: Any,
) -> Surrogate:
    """MHPO (arXiv 2603.16929): loss = -w_b * exp(psi - sg(zeta)) * A, psi = bound * tanh(log r / bound),
    zeta = (softplus(psi) / l+)^k+ + (softplus(-psi) / l-)^k-, with (k, l) = ``rise`` upwards and ``fall``
    downwards.

    At r = 1 the weight is 0.27, a constant that Adam hides. The behaviour weight is our addition.
    """
    q = _ratios(x, behavior_weight, clip, weight_cap)
    psi = bound * torch.tanh(q.log_r / bound)
    held = psi.detach()
    zeta = (softplus(held) / rise[1]) ** rise[0] + (softplus(-held) / fall[1]) ** fall[0]
    return Surrogate(-torch.exp(psi - zeta + q.log_w_b) * q.advantage, q.clipped)


SURROGATES: dict[str, Callable[..., Surrogate]] = {
    "ppo": ppo,
    "decoupled": decoupled,
    "decoupled_kl": decoupled_kl,
    "impala": impala,
    "is_pg": is_pg,
    "cispo": cispo,
    "topr": topr,
    "mdpo": mdpo,
    "dppo_tv": dppo_tv,
    "sapo": sapo,
    "mhpo": mhpo,
}

def _without_own(behavior_weight: str) -> str:
    """The same choice for an objective that never divides by behavior itself."""
    return {"surrogate": "none", "twice": "trace"}.get(behavior_weight, behavior_weight)


def _penalty(x: SurrogateInput, q: _Ratios, *, reverse: bool) -> Tensor:
    """[...] KL(proximal || policy), or KL(policy || proximal) if ``reverse``; 0.5 (log r)^2 where neither is
    known."""
    if x.proximal_params is None or x.params is None or x.distribution is None:
        return 0.5 * q.log_r.square()
    center = x.proximal_params.detach()
    return x.distribution.kl(x.params, center) if reverse else x.distribution.kl(center, x.params)


def _masked(loss: Tensor, x: SurrogateInput) -> Tensor:
    """[...] loss with 0 on reset rows; needed where a term does not vanish with the advantage."""
    return loss.masked_fill(~x.valid, 0.0)
