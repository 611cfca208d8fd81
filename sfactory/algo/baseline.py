"""The baseline with which the policy gradient has the least variance.

Of all constants b, the estimator mean(w * (A - b) * grad log policy) has the least variance (traces of covariance
matrices; products of different rows left out) with

    b = mean(w^2 * |grad log policy|^2 * A) / mean(w^2 * |grad log policy|^2)

(Greensmith et al. 2004, JMLR 5; with weights: VCPO, arXiv 2602.17616). The norm of every row's gradient in
the network's weights would need a backward pass of its own. Its stand-in is the norm in the parameters of the action
distribution, as in the optimal token baseline (arXiv 2602.07078): for logits 1 - 2 pi(a) + sum of pi^2.
"""

import torch
from torch import Tensor


@torch.no_grad()
def baseline_means(advantage: Tensor, weight: Tensor, score_square: Tensor, valid: Tensor) -> Tensor:
    """Means over valid rows for `optimal_baseline`, [2] float64.

    Of weight^2 * score_square * advantage, and of weight^2 * score_square. All inputs [...]; valid bool. Means of
    several learners are pooled before they are divided.
    """
    factor = (weight.double().square() * score_square.double()).masked_fill(~valid, 0.0)
    product = factor * advantage.double().masked_fill(~valid, 0.0)
    return torch.stack([product.sum(), factor.sum()]) / valid.sum().clamp(min=1)


def optimal_baseline(means: Tensor) -> Tensor:
    """The baseline [] from `baseline_means`; 0 where no action has a gradient."""
    return means[0] / means[1].clamp(min=1e-30)
