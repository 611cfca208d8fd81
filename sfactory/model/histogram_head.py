"""Value head that computes the probabilities of bins; the value is their expectation.

Farebrother et al. 2024, arXiv 2403.03950. The range of the bins is in the units of the value head's output: those of
the reward, or standard deviations from the mean with normalized value targets. Where these statistics change, the bins
stay and the head is not corrected: values in units of reward move with the statistics until it has learned the new
targets. Bins that moved with the values, as PopArt's head does, explained the targets much worse (benchmarks/LOG.md).
The loss is in `algo.histogram`.

Legend: N samples, F features, M bins.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sfactory.model.encoders import orthogonal


class ValueBins(NamedTuple):
    """Bins of equal width that divide a range of values."""

    low: float
    """Lower edge of the first bin."""
    high: float
    """Upper edge of the last bin."""
    number: int
    """M."""


class HistogramHead(nn.Linear):
    """Logits of the bins [N, M] from features [N, F]; nearly uniform at first, so the value is that of the middle."""

    offsets: Tensor
    """[M] distance of the bins from the middle of the range, in widths of a bin."""

    def __init__(self, features: int, bins: ValueBins) -> None:
        super().__init__(features, bins.number)
        orthogonal(self, 0.01)
        self.middle, self.width = (bins.low + bins.high) / 2.0, (bins.high - bins.low) / bins.number
        # Halves of whole numbers are exact in every precision, unlike the centers of the bins.
        self.register_buffer("offsets", torch.arange(bins.number) - (bins.number - 1) / 2.0, persistent=False)

    def expected(self, logits: Tensor) -> Tensor:
        """The value [...] of logits [..., M]: the mean of the centers of the bins."""
        return self.middle + self.width * (logits.softmax(-1) @ self.offsets)

    def move_bins(self, factor: float, shift: float) -> None:
        """Make the value factor * value + shift by other bins, for a head that is not trained any more."""
        self.middle, self.width = factor * self.middle + shift, factor * self.width
