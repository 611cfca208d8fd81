"""Averages over the learners of a job; the identity when there is one learner.

`Update` and `Learner` call these methods at the places where several learners have to agree, so that every learner
takes the same optimizer steps, holds the same statistics and stops at the same update:

    average_gradients   once per optimizer step, between the backward pass and the clipping of gradients
    pool_moments        once per update for value targets, once for advantages, and once for all other normalizers; with
                        algorithm.name dae once per optimizer step for advantages
    average_metric      once per update with optim.schedule kl_adaptive, staleness and optim.sfpo-steps each; once per
                        optimizer step with surrogate.objective r2vpo
    propose             before every update; its votes, counts and numbers travel with the gradients
    agree, total_counts, numbers
                        after every update; they cost nothing

Dividing the sum of the gradients, each times its number of valid rows, by the sum of these numbers makes two learners
with B rows equal to one with 2B rows. A gradient that is not finite on one learner makes the sum not finite on all of
them, so all skip the step. The implementation for several learners is `sfactory.learning.process_group`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    import numpy as np


class BatchMoments(NamedTuple):
    """Moments of the valid rows of one batch, float64."""

    mean: Tensor  # [*S]
    var: Tensor  # [*S], of the population
    rows: Tensor  # [] their number


class Joint(NamedTuple):
    """How a metric of all rows follows from numbers of the learners, where it is not the mean over rows."""

    numbers: Callable[[], Tensor]
    """-> [K] of the rows of one learner. Not called where there is only one."""
    combine: Callable[[Tensor], Tensor]
    """Those of all learners [W, K] -> [] the metric."""


class Counts(NamedTuple):
    """What is trained in one update, by one learner or by all of them."""

    rows: int = 0
    """Valid rows: where an environment has several agents, steps of agents."""
    environment_steps: int = 0
    """Where an environment has several agents: its steps with these rows; else 0."""


class Vote(NamedTuple):
    """What one learner wants, and after an update what all of them do."""

    outcome: int = 0
    """How training ends, the largest one that a learner proposed; 0: it goes on."""
    save: bool = False
    """Whether a checkpoint is written; it is if any learner wants one."""


class Learners(Protocol):
    """The learners of a job, as one of them sees the others."""

    world_size: int
    """Number of learners."""
    is_leader: bool
    """Whether this learner writes checkpoints. Exactly one does."""
    recordable: bool
    """Whether the calls made within an optimizer step can be part of a CUDA graph."""

    # -- once, before training ---------------------------------------------------------------------------------

    def require_same(self, facts: Mapping[str, str]) -> None:
        """SettingError on all learners if one of them has other values than the leader. Called once."""

    def leaders(self, name: str, value: str) -> str:
        """The leader's value."""

    def copy_from_leader(self, parts: Mapping[str, Mapping[str, Tensor]]) -> bool:
        """Overwrite the tensors with the leader's, in place; False if they are the leader's own."""

    # -- in every update ---------------------------------------------------------------------------------------

    def propose(self, vote: Vote, counts: Counts, numbers: np.ndarray) -> None:
        """Say what this learner wants, and what it has in the batch of the update that follows.

        numbers: [K] float64, of which each is 0 on all learners but one; K is the same in all updates.
        """

    def average_gradients(
        self, gradient: Tensor, valid: Tensor, metrics: Mapping[str, Tensor], joint: Mapping[str, Joint]
    ) -> dict[str, Tensor]:
        """Replace the flat gradient [size], in place, by its mean over learners, weighted by valid rows.

        valid: [T, b] bool, the rows of this learner's minibatch that its loss is a mean of. metrics: [] each; the same
        mean of them is returned. joint: by name, how those of them that are no such mean are computed instead.
        """

    def pool_moments(self, moments: Sequence[BatchMoments]) -> Sequence[BatchMoments]:
        """Moments of the rows of all learners together, in the order given."""

    def average_metric(self, metric: Tensor, rows: Tensor) -> Tensor:
        """Mean of a metric [] over learners, weighted by the valid rows [] that each learner's own is a mean of."""

    def total_counts(self, counts: Counts, skipped: bool) -> Counts:
        """What was trained in the update by all learners, exactly. skipped: whether a step was not taken, the same on
        all learners; else `counts` are those that were proposed."""

    def agree(self, vote: Vote) -> Vote:
        """What all learners do after the update, by the votes before it; `vote` is what a single learner wants now."""

    def numbers(self) -> np.ndarray:
        """[K] float64: what all learners proposed before the update, each number from the learner that has it."""

    def exchange(self, numbers: np.ndarray) -> np.ndarray:
        """The same for the numbers of now, outside of an update. All learners call it."""

    def check_same(self, digest: Callable[[], int], update: int) -> None:
        """LearnersDiffer if another learner has another digest of its weights. For `run.debug`."""

    def collect(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """For the leader the arrays of all learners, those of others as `NAME.RANK`. None where no learner has any."""

    def close(self) -> None:
        """Leave the job."""


class SingleLearner:
    """The only learner of its job: every method returns what it is given."""

    world_size = 1
    is_leader = True
    recordable = True

    def require_same(self, facts: Mapping[str, str]) -> None:
        pass

    def leaders(self, name: str, value: str) -> str:
        return value

    def copy_from_leader(self, parts: Mapping[str, Mapping[str, Tensor]]) -> bool:
        return False

    def propose(self, vote: Vote, counts: Counts, numbers: np.ndarray) -> None:
        self._numbers = numbers

    def average_gradients(
        self, gradient: Tensor, valid: Tensor, metrics: Mapping[str, Tensor], joint: Mapping[str, Joint]
    ) -> dict[str, Tensor]:
        return dict(metrics)

    def pool_moments(self, moments: Sequence[BatchMoments]) -> Sequence[BatchMoments]:
        return moments

    def average_metric(self, metric: Tensor, rows: Tensor) -> Tensor:
        return metric

    def total_counts(self, counts: Counts, skipped: bool) -> Counts:
        return counts

    def agree(self, vote: Vote) -> Vote:
        return vote

    def numbers(self) -> np.ndarray:
        return self._numbers

    def exchange(self, numbers: np.ndarray) -> np.ndarray:
        return numbers

    def check_same(self, digest: Callable[[], int], update: int) -> None:
        pass

    def collect(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return arrays

    def close(self) -> None:
        pass
