"""HL-Gauss: the loss of a value that is the expectation over bins.

The target of a row is a normal distribution around its value target, cut off at the range and divided into bins; the
loss is the cross-entropy of the network's distribution over the bins. Imani and White 2018, arXiv 1806.04613;
Farebrother et al. 2024, arXiv 2403.03950, eq. 4 and 5. The bins divide the range from low to high equally; they are
those of `model.histogram_head`.

Legend: [...] is [N] or [T, b], the same for all; M bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def gaussian_bins(target: Tensor, *, low: float, high: float, bins: int, sigma: float) -> Tensor:
    """Probabilities [..., M] of the bins, from value targets [...] in the units of the range.

    sigma: standard deviation, in widths of a bin. A target outside the range counts as the nearest end of it.
    """
    edges = torch.arange(bins + 1, dtype=target.dtype, device=target.device)
    place = (target.clamp(low, high) - low) * (bins / (high - low))  # in widths of a bin, from the lower end
    below = torch.special.erf((edges - place.unsqueeze(-1)) / (sigma * math.sqrt(2.0)))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def histogram_error(logits: Tensor, target: Tensor, valid: Tensor, *, low: float, high: float, sigma: float) -> Tensor:
    """Cross-entropy [...] of every row, in nats; 0 on reset rows, whose targets are not read.

    Args:
        logits: [..., M] of the network.
        target: [...] value targets.
        valid: [...] bool.
        low, high, sigma: as in `gaussian_bins`.
    """
    reset = ~valid
    wanted = gaussian_bins(target.masked_fill(reset, low), low=low, high=high, bins=logits.shape[-1], sigma=sigma)
    return -(wanted.masked_fill(reset.unsqueeze(-1), 0.0) * logits.log_softmax(-1)).sum(-1)


@torch.no_grad()
def outside_fraction(target: Tensor, valid: Tensor, *, low: float, high: float) -> Tensor:
    """[] share of the value targets [...] outside the range, over valid rows."""
    outside = ((target < low) | (target > high)) & valid
    return outside.sum() / valid.sum().clamp(min=1)
