"""Surrogate losses of the policy for stale data, per sample (`loss.total_loss` takes the mean).

Three policies: ``policy`` (being trained, has the gradient), ``proximal`` (center of the trust region),
``behavior`` (selected the actions). With log-probabilities of the action taken,

    r   = policy / proximal      the trust region is a bound on r
    w_b = proximal / behavior    behavior weight: corrects for stale data; constant in the gradient
    w   = policy / behavior = r * w_b

w_b belongs in the loss exactly once. ``behavior_weight`` selects where it is applied:

    surrogate   here, inside the ratio: the loss is anchored at behavior
    trace       the trace's clipped weight multiplies the advantage: the loss is anchored at proximal
                (IMPACT, arXiv 1912.00167)
    none        nowhere (the "proximal" row of Hilton's staleness experiment)
    twice       in both places, as in Sample Factory's V-trace + PPO; for comparison only

`check_weights` rejects combinations that would apply it twice, or never, without stating so.

An objective is a function ``(q: Ratios, o: Options) -> Tensor`` with one entry in `SURROGATES`. The entry lists the
options that the function reads; `SurrogateObjective` computes the ratios, applies the mask and calls the function.
To add a hyper-parameter, add a field to `Options` and a setting of the same name to `SurrogateConfig` in
sfactory/config/schema.py.

Shapes: [...] is [N] or [T, b], the same for all; K distribution parameters. Ratios are kept as logarithms as long as
possible. Reset rows (valid False) enter no exponential and have loss 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sfactory.algo.weight_rule import BEHAVIOR_WEIGHTS, check_weights

__all__ = [
    "BEHAVIOR_WEIGHTS",
    "SURROGATES",
    "Options",
    "Ratios",
    "Surrogate",
    "SurrogateInput",
    "SurrogateObjective",
    "check_weights",
    "unused_options",
]

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


class Options(NamedTuple):
    """Hyper-parameters of the objectives, named like their settings in the section `surrogate`."""

    clip: float = 0.2
    """Trust region on r; also defines ``clipped`` for objectives without a trust region."""
    dual_clip: float | None = None
    """Bound on the loss of negative advantages, in multiples of the advantage; greater than 1. None or 0: off."""
    weight_cap: float | None = 100.0
    """Upper bound of w. None or 0: e^20."""
    kl_coef: float = 1.0
    """Coefficient of the KL penalty."""

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> "Options":
        """Options by name. ValueError if a name does not exist."""
        for name in options:
            if name not in cls._fields:
                raise ValueError(f"objective option {name!r} does not exist, expected one of {', '.join(cls._fields)}")
        return cls(**options)

    @classmethod
    def read(cls, settings: object) -> dict[str, float | None]:
        """The attributes of ``settings`` that are named like an option: the keyword arguments of an objective."""
        return {name: getattr(settings, name) for name in cls._fields}


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


@dataclass(frozen=True)
class SurrogateObjective:
    """One entry of `SURROGATES`: a loss function and the rules for calling it."""

    loss: Callable[[Ratios, Options], Tensor | Surrogate]
    """Loss per sample [...]; a `Surrogate` if the objective has its own definition of ``clipped``."""
    uses: tuple[str, ...] = ()
    """Options that the loss reads besides clip, which ``clipped`` always needs. Without weight_cap, w has no cap."""
    divides_by_behavior: bool = True
    """False: the loss has no behavior weight of its own, only that of the trace (`weight_rule.NO_OWN_WEIGHT`)."""

    def own_weight(self, behavior_weight: str) -> str:
        """Where this objective applies the weight: it never divides by behavior itself if it is not built to."""
        if self.divides_by_behavior:
            return behavior_weight
        return {"surrogate": "none", "twice": "trace"}.get(behavior_weight, behavior_weight)

    def __call__(self, x: SurrogateInput, *, behavior_weight: str = "surrogate", **options: float | None) -> Surrogate:
        """Loss and clipped samples of one minibatch [...]. ``options`` are fields of `Options`."""
        o = Options.create(options)
        behavior_weight = self.own_weight(behavior_weight)
        q = compute_ratios(x, behavior_weight, o.clip, o.weight_cap if "weight_cap" in self.uses else None)
        result = self.loss(q, o)
        loss, clipped = result if isinstance(result, Surrogate) else (result, q.clipped)
        return Surrogate(loss.masked_fill(~x.valid, 0.0), clipped)


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


def sapo(q: Ratios, o: Options, *, temperature: float = 1.0, temperature_negative: float = 1.05) -> Tensor:
    """SAPO (arXiv 2511.20347): a sigmoid gate instead of the clip, loss = -w_b * 4/tau * sigmoid(tau * (r - 1)) * A.

    tau is ``temperature`` for A > 0, else ``temperature_negative``. The behavior weight is our addition.
    """
    tau = torch.full_like(q.w, temperature_negative).masked_fill_(q.advantage > 0, temperature)
    gate = torch.sigmoid(tau * torch.expm1(q.log_r.clamp(max=LOG_WEIGHT_LIMIT)))
    return -(4.0 / tau) * gate * q.log_w_b.exp() * q.advantage


def mhpo(
    q: Ratios,
    o: Options,
    *,
    bound: float = 1.5,
    rise: tuple[float, float] = (1.5, 1.0),
    fall: tuple[float, float] = (2.0, 0.8),
) -> Tensor:
    """MHPO (arXiv 2603.16929): loss = -w_b * exp(psi - sg(zeta)) * A.

        psi  = bound * tanh(log r / bound)
        zeta = (softplus(psi) / l+)^k+ + (softplus(-psi) / l-)^k-,   (k+, l+) = ``rise``, (k-, l-) = ``fall``

    At r = 1 the weight is 0.27; Adam is insensitive to this constant. The behavior weight is our addition.
    """
    psi = bound * torch.tanh(q.log_r / bound)
    held = psi.detach()
    zeta = (softplus(held) / rise[1]) ** rise[0] + (softplus(-held) / fall[1]) ** fall[0]
    return -torch.exp(psi - zeta + q.log_w_b) * q.advantage


SURROGATES: dict[str, SurrogateObjective] = {
    "ppo": SurrogateObjective(ppo, uses=("dual_clip", "weight_cap"), divides_by_behavior=False),
    "decoupled": SurrogateObjective(decoupled, uses=("dual_clip", "weight_cap")),
    "decoupled_kl": SurrogateObjective(decoupled_kl, uses=("weight_cap", "kl_coef")),
    "impala": SurrogateObjective(impala, divides_by_behavior=False),
    "is_pg": SurrogateObjective(is_pg, uses=("weight_cap",)),
    "cispo": SurrogateObjective(cispo, uses=("weight_cap",)),
    "topr": SurrogateObjective(topr),
    "mdpo": SurrogateObjective(mdpo, uses=("weight_cap", "kl_coef")),
    "dppo_tv": SurrogateObjective(dppo_tv, uses=("weight_cap",)),
    "sapo": SurrogateObjective(sapo, uses=("weight_cap",)),
    "mhpo": SurrogateObjective(mhpo, uses=("weight_cap",)),
}


def unused_options(surrogate: str, options: Mapping[str, float | None]) -> list[str]:
    """Names of options that are not at their default although objective ``surrogate`` does not read them.

    None and 0 both mean off. ValueError for an option that does not exist.
    """
    used, values = ("clip", *SURROGATES[surrogate].uses), Options.create(options)._asdict()
    changed = [name for name, default in Options._field_defaults.items() if (values[name] or 0) != (default or 0)]
    return [name for name in changed if name not in used]


def log_cap(weight_cap: float | None) -> float:
    """Logarithm of the largest weight; None and 0: no cap but the one of every exponential."""
    return LOG_WEIGHT_LIMIT if not weight_cap else min(math.log(weight_cap), LOG_WEIGHT_LIMIT)


def log_interval(clip: float) -> tuple[float, float]:
    """log(1 - clip), log(1 + clip); a clip of 1 or more has no lower bound."""
    return math.log1p(-clip) if clip < 1.0 else -math.inf, math.log1p(clip)


def _penalty(q: Ratios, *, reverse: bool) -> Tensor:
    """[...] KL(proximal || policy), or KL(policy || proximal) if ``reverse``; 0.5 (log r)^2 if not known."""
    x = q.inputs
    if x.proximal_params is None or x.params is None or x.distribution is None:
        return 0.5 * q.log_r.square()
    center = x.proximal_params.detach()
    return x.distribution.kl(x.params, center) if reverse else x.distribution.kl(center, x.params)
