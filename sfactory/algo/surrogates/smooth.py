"""Objectives with a smooth gate instead of a clip."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import LOG_WEIGHT_LIMIT, Ratios


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
