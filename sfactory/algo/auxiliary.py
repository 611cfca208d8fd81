"""Loss of PPG's auxiliary phase."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AuxiliaryLoss(NamedTuple):
    """Parts of the loss of one minibatch, [] each."""

    total: Tensor
    """auxiliary + value + clone_coef * distance; the tensor to differentiate."""
    auxiliary: Tensor
    """Half the mean squared error of the auxiliary value."""
    value: Tensor
    """Half the mean squared error of the value."""
    distance: Tensor
    """Mean KL(policy before the phase || policy), in nats."""


def auxiliary_loss(
    auxiliary: Tensor,
    value: Tensor,
    target: Tensor,
    distance: Tensor,
    valid: Tensor,
    *,
    clone_coef: float,
    num_valid: Tensor | None = None,
) -> AuxiliaryLoss:
    """L_joint and L_value of Cobbe et al. 2020, arXiv 2009.04416, as in openai/phasic-policy-gradient.

    auxiliary, value, target, distance [...] float, valid [...] bool; all means are over valid rows. num_valid: [] valid
    rows of the minibatch, if these are a part of it; None: they are the minibatch.
    """
    count = (valid.sum() if num_valid is None else num_valid).clamp(min=1)

    def mean(x: Tensor) -> Tensor:
        return torch.where(valid, x, 0.0).sum() / count

    own, other = (0.5 * mean((x - target).masked_fill(~valid, 0.0).square()) for x in (auxiliary, value))
    kl = mean(distance)
    return AuxiliaryLoss(own + other + clone_coef * kl, own, other, kl)
