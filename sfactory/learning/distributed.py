"""Averages over the learners of a job; the identity when there is one learner.

`Update` and `Learner` call these methods at the places where several learners have to agree, so that every learner
takes the same optimizer steps, holds the same statistics and stops at the same update:

    average_gradients   once per optimizer step, between the backward pass and the clipping of gradients
    pool_moments        once per update for value targets, once for advantages, and once for all other normalizers
    average_metrics     once per update
    total_rows, agree   once per update

An implementation over a collective needs one all-reduce per optimizer step: the gradients as one flat vector, each
multiplied by the number of valid rows of its minibatch, followed by that number and by one counter per outcome of
`agree`. Dividing the summed gradients by the summed number of rows makes two learners with B rows equal to one with 2B
rows. A gradient that is not finite on one learner makes the sum not finite on all of them, so all skip the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class BatchMoments(NamedTuple):
    """Moments of the valid rows of one batch, float64."""

    mean: Tensor  # [*S]
    var: Tensor  # [*S], of the population
    rows: Tensor  # [] their number


class Learners(Protocol):
    """The learners of a job, as one of them sees the others."""

    world_size: int
    """Number of learners."""
    is_leader: bool
    """Whether this learner writes checkpoints. Exactly one does."""
    recordable: bool
    """Whether the calls made within an optimizer step can be part of a CUDA graph."""

    def average_gradients(self, parameters: Sequence[nn.Parameter], valid: Tensor) -> None:
        """Replace every `.grad`, in place, by its mean over learners, weighted by the valid rows of the minibatch.

        valid: [T, b] bool, the rows of this learner's minibatch that its loss is a mean of.
        """

    def pool_moments(self, moments: Sequence[BatchMoments]) -> Sequence[BatchMoments]:
        """Moments of the rows of all learners together, in the order given."""

    def average_metrics(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean of every metric [] over learners."""

    def total_rows(self, rows: int) -> int:
        """Sum of a number of rows over learners."""

    def agree(self, outcome: int) -> int:
        """The largest outcome that any learner proposed (0: go on), the same on every learner."""


class SingleLearner:
    """The only learner of its job: every method returns what it is given."""

    world_size = 1
    is_leader = True
    recordable = True

    def average_gradients(self, parameters: Sequence[nn.Parameter], valid: Tensor) -> None:
        pass

    def pool_moments(self, moments: Sequence[BatchMoments]) -> Sequence[BatchMoments]:
        return moments

    def average_metrics(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        return metrics

    def total_rows(self, rows: int) -> int:
        return rows

    def agree(self, outcome: int) -> int:
        return outcome
