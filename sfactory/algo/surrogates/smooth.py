"""Objectives with a smooth gate or a target of the ratio instead of a clip."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import LOG_WEIGHT_LIMIT, Ratios, Surrogate


def sapo(q: Ratios, o: Options) -> Tensor:
    """SAPO (arXiv 2511.20347): a sigmoid gate instead of the clip, loss = -w_b * 4/tau * sigmoid(tau * (r - 1)) * A.

    tau is ``gate_temperature`` for A > 0, else ``gate_temperature_negative``. The behavior weight is our addition.
    """
    tau = torch.full_like(q.w, o.gate_temperature_negative).masked_fill_(q.advantage > 0, o.gate_temperature)
    gate = torch.sigmoid(tau * torch.expm1(q.log_r.clamp(max=LOG_WEIGHT_LIMIT)))
    return -(4.0 / tau) * gate * q.log_w_b.exp() * q.advantage


def mhpo(q: Ratios, o: Options) -> Tensor:
    """MHPO (arXiv 2603.16929): loss = -w_b * exp(psi - sg(zeta)) * A.

        psi  = ratio_bound * tanh(log r / ratio_bound)
        zeta = (softplus(psi) / l+)^k+ + (softplus(-psi) / l-)^k-

    k+ and l+ are ``hazard_shape`` and ``hazard_scale``, k- and l- those of r < 1 (``hazard_shape_negative``,
    ``hazard_scale_negative``). At r = 1 the weight is 0.27; Adam is insensitive to this constant. The behavior weight
    is our addition.
    """
    psi = o.ratio_bound * torch.tanh(q.log_r / o.ratio_bound)
    held = psi.detach()
    rise = (softplus(held) / o.hazard_scale) ** o.hazard_shape
    fall = (softplus(-held) / o.hazard_scale_negative) ** o.hazard_shape_negative
    return -torch.exp(psi - (rise + fall) + q.log_w_b) * q.advantage


def bpo(q: Ratios, o: Options) -> Surrogate:
    """Bounded policy optimization (arXiv 2604.18578; bounded-ratio-rl/bounded_ratio_rl): an L1 distance to a target.

        loss   = w_b * |(r - target) * (Q - V)|,    target = 1 - clip + 2 clip * sigmoid((Q - u) / target_temperature)
        critic = softplus(Q - u) - (Q - u) / 2      trains u, the median head

    The optimum of a bounded ratio is 1 + clip where Q is above its median under proximal, and 1 - clip below it; an
    r beyond the target is pulled back, unlike with PPO's clip. Without ``median_head`` u is V. Advantages are not
    normalized. Differs from the paper by the behavior weight; it has clip 0.3 and ten epochs.
    """
    x = q.inputs
    assert x.value is not None, "bpo needs values"
    assert x.action_value is not None, "bpo needs action values"
    reset = ~x.valid
    value, action_value = (y.detach().masked_fill(reset, 0.0) for y in (x.value, x.action_value))
    center, critic = value, None
    if o.median_head:
        assert x.median is not None, "bpo with median_head needs the output of that head"
        above = action_value - x.median.masked_fill(reset, 0.0)
        critic = (softplus(above) - 0.5 * above).masked_fill(reset, 0.0)
        center = x.median.detach().masked_fill(reset, 0.0)
    gate = torch.sigmoid(((action_value - center) / o.target_temperature).clamp(-_GATE_LIMIT, _GATE_LIMIT))
    target = 1.0 - o.clip + 2.0 * o.clip * gate
    gap = action_value - value
    if q.trace_weight is not None:
        gap = gap * q.trace_weight.masked_fill(reset, 0.0)
    return Surrogate(((q.w - q.log_w_b.exp() * target) * gap).abs(), q.clipped, critic=critic)


_GATE_LIMIT = 10.0  # of the sigmoid's argument, as in the authors' port to rsl_rl
