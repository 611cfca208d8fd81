"""Metrics of all rows together, from a few numbers of every part of them.

Several learners have a part of the rows each. The mean of their values is not the value of all rows where a metric is
no mean over rows. Each pair of functions below has what a part contributes, [K], and the metric of W parts by their
numbers [W, K]. A part without a valid row does not count, whatever its other numbers are.

Shapes: [...] is [N] or [T, b], the same for all.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def weight_sums(log_w: Tensor, valid: Tensor) -> Tensor:
    """[4]: valid rows, their largest log weight, and the sums of w and w^2 with w over the largest one."""
    log_w = log_w.masked_fill(~valid, -torch.inf)
    largest = log_w.max().clamp(min=-1e30)  # clamp: without a valid row this is -inf
    w = torch.exp(log_w - largest)
    return torch.stack([valid.sum().to(w.dtype), largest, w.sum(), w.square().sum()])


@torch.no_grad()
def sample_size(sums: Tensor) -> Tensor:
    """[] `loss.effective_sample_size` of all rows, from the `weight_sums` [W, 4]; 0 if no row is valid."""
    rows, largest, total, squares = sums.double().unbind(1)
    largest = largest.masked_fill(rows == 0, -torch.inf)
    scale = torch.exp(largest - largest.max().clamp(min=-1e30))
    total = (scale * total).masked_fill(rows == 0, 0.0).sum()
    squares = (scale.square() * squares).masked_fill(rows == 0, 0.0).sum()
    return total.square() / (rows.sum() * squares).clamp(min=1e-30)


@torch.no_grad()
def fit_moments(value: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """[5]: valid rows, mean and variance of target - value, mean and variance of the target."""
    reset, rows = ~valid, valid.sum()
    count, moments = rows.clamp(min=1), [rows.to(value.dtype)]
    for y in (target - value, target):
        mean = y.masked_fill(reset, 0.0).sum() / count
        moments += [mean, (y - mean).masked_fill(reset, 0.0).square().sum() / count]
    return torch.stack(moments)


@torch.no_grad()
def fit(moments: Tensor) -> Tensor:
    """[] `loss.explained_variance` of all rows, from the `fit_moments` [W, 5]."""
    rows, error_mean, error_var, target_mean, target_var = moments.double().unbind(1)

    def variance(means: Tensor, variances: Tensor) -> Tensor:
        # Deviations from the common mean: the squares of the means themselves would cancel.
        return _mean(rows, variances + (means - _mean(rows, means)).square())

    return 1.0 - variance(error_mean, error_var) / variance(target_mean, target_var).clamp(min=1e-12)


@torch.no_grad()
def row_mean(mean: Tensor, valid: Tensor) -> Tensor:
    """[2]: valid rows, and a mean [] over them."""
    return torch.stack([valid.sum().to(mean.dtype), mean])


@torch.no_grad()
def whole_mean(means: Tensor) -> Tensor:
    """[] the mean over all rows, from the `row_mean` [W, 2]."""
    rows, mean = means.double().unbind(1)
    return _mean(rows, mean)


@torch.no_grad()
def root_mean(means: Tensor) -> Tensor:
    """[] the square root of the mean over all rows, from the `row_mean` [W, 2] of the squares."""
    return whole_mean(means).sqrt()


@torch.no_grad()
def largest(values: Tensor) -> Tensor:
    """[] the largest of the values [W, 1]; those of parts without a valid row count too."""
    return values.amax()


def _mean(rows: Tensor, means: Tensor) -> Tensor:
    """[] mean of the means [W] of parts, weighted by their rows [W]."""
    return (rows * means).masked_fill(rows == 0, 0.0).sum() / rows.sum().clamp(min=1.0)
