"""Derivatives of an action distribution by formula: fewer and smaller operations than recording and differentiating it.

Legend: n rows, K distribution parameters, k categories of a head, d dimensions of a box.

Everything here has the rows last, [K, n]: with the few columns of an action space last, torch's CPU kernels cannot use
vectors (log_softmax of 256 rows of 6 categories: 51 microseconds as [n, k], 2 as [k, n]).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sfactory.model.distributions import HALF_LOG_2PI, ActionDistribution

Pullback = Callable[[Tensor, Tensor], Tensor]
"""Slopes of log-probability and entropy [n] -> gradient with respect to the columns [k, n] of one head or box."""


def has_gradient(distribution: ActionDistribution) -> bool:
    """Whether `HeadGradient` knows the formulas: categorical heads, boxes that are not squashed, no further column."""
    plain = type(distribution) is ActionDistribution
    return plain and all(part.log_span is None for part in distribution.parts)


class HeadGradient:
    """Log-probability of actions, and the gradient of what is computed from it and from the entropy.

    log_prob [...]: as `ActionDistribution.log_prob`, up to rounding.
    """

    def __init__(self, distribution: ActionDistribution, params: Tensor, action: Mapping[str, Tensor]) -> None:
        """params [..., K] float32 or float64, action name -> [..., *leaf.shape]. Call it within `torch.no_grad`."""
        self.shape = params.shape
        columns = params.reshape(-1, self.shape[-1]).t().contiguous()
        found: list[tuple[Tensor, Pullback]] = []
        for part in distribution.parts:
            rows = columns if len(distribution.parts) == 1 else columns[part.params]
            taken = action[part.name].reshape(columns.shape[1], -1).t()
            if not part.discrete:
                found.append(_gaussian(taken, *rows.chunk(2)))
            elif len(part.sizes) == 1:
                found.append(_categorical(rows, taken.long()))
            else:
                heads = zip(rows.split(list(part.sizes)), taken.long().split(1), strict=True)
                found += [_categorical(logits, index) for logits, index in heads]
        log_prob = found[0][0]
        for term, _ in found[1:]:
            log_prob = log_prob + term
        self.log_prob = log_prob.view(self.shape[:-1])
        self._pullbacks = [pullback for _, pullback in found]

    def __call__(self, log_prob: Tensor, entropy: Tensor) -> Tensor:
        """Slopes of a loss in log-probability and entropy, [...] each -> its gradient in the parameters [..., K]."""
        log_prob, entropy = log_prob.reshape(-1), entropy.reshape(-1)
        parts = [pullback(log_prob, entropy) for pullback in self._pullbacks]
        gradient = parts[0] if len(parts) == 1 else torch.cat(parts)
        return gradient.t().reshape(self.shape)


def _categorical(logits: Tensor, index: Tensor) -> tuple[Tensor, Pullback]:
    """logits [k, n], index [1, n] of the category taken -> its log-probability [n].

    d log p_i / d logits = one_hot(i) - p,    d entropy / d logits = -p * (log p + entropy)
    """
    log_p = torch.log_softmax(logits, 0)
    p = log_p.exp()

    def pullback(log_prob: Tensor, entropy: Tensor) -> Tensor:
        centered = log_p - (p * log_p).sum(0)  # log p + entropy
        gradient = torch.addcmul(log_prob, centered, entropy).mul_(p).neg_()
        return gradient.scatter_add_(0, index, log_prob.view(1, -1))

    return log_p.gather(0, index).squeeze(0), pullback


def _gaussian(x: Tensor, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Pullback]:
    """Sample x, mean and log_std [d, n] -> log-density [n].

    d log p / d mean = z / std,    d log p / d log_std = z^2 - 1,    d entropy / d log_std = 1;    z = (x - mean) / std
    """
    inv_std = torch.exp(-log_std)
    z = (x - mean) * inv_std
    square = z.square()

    def pullback(log_prob: Tensor, entropy: Tensor) -> Tensor:
        return torch.cat([z * inv_std * log_prob, torch.addcmul(entropy, square - 1.0, log_prob)])

    return (-0.5 * square - log_std - HALF_LOG_2PI).sum(0), pullback
