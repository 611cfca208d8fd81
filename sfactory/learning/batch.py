"""The learner's batch: slots side by side, and its division into minibatches.

Legend: T steps, B lanes, K distribution parameters, H width of the recurrent state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

SHUFFLE_STREAM = 3
AUXILIARY_STREAM = 8


class Batch(NamedTuple):
    """Slots side by side, time-major, on the learner's device."""

    obs: dict[str, Tensor]  # [T+1, B, ...]
    first: Tensor  # [T+1, B] bool
    action: dict[str, Tensor]  # [T, B, ...]
    log_prob: Tensor  # [T, B] of behavior, as stored when acting
    params: Tensor  # [T, B, K] of behavior
    reward: Tensor  # [T, B] raw
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool
    valid: Tensor  # [T, B] bool, False on reset rows
    lag: Tensor  # [T, B] float, updates between acting and learning
    state: Tensor | None  # [B, H] recurrent state before row 0
    discounted_return: Tensor | None  # [T, B] running return of the raw reward
    successor: Tensor | None = None  # [T, B] int64, row that bootstraps each row; None: always the next one
    order: Tensor | None = None  # [T, B] int64, rows in the order of the agent's actions; None: all in order of time
    fresh: Tensor | None = None  # [T, B] bool, False on rows that were trained on before (replay); None: all are fresh

    def as_rows(self) -> Batch:
        """[1, T x B]: every row becomes a lane, for policies without memory. A view."""
        return Batch(**{name: rows_of(value) for name, value in self._asdict().items()})

    def without_last_row(self) -> Batch:
        """Observations and `first` of T instead of T + 1 rows: without the row that only gives the last value."""
        return self._replace(obs={name: leaf[:-1] for name, leaf in self.obs.items()}, first=self.first[:-1])

    def lanes(self, index: Tensor | None) -> Batch | BatchLanes:
        """The lanes of a minibatch, index [b] int64; None is all of them, without a copy."""
        return self if index is None else BatchLanes(self, index)


class BatchLanes:
    """Some lanes of a batch. A field is selected when it is first read: what a loss does not read costs nothing."""

    obs: dict[str, Tensor]  # [T(+1), b, ...]
    first: Tensor  # [T(+1), b] bool
    action: dict[str, Tensor]  # [T, b, ...]
    log_prob: Tensor  # [T, b]
    params: Tensor  # [T, b, K]
    valid: Tensor  # [T, b] bool
    lag: Tensor  # [T, b] float
    state: Tensor | None  # [b, H]
    order: Tensor | None  # [T, b] int64
    whole: Batch  # [T, B]
    index: Tensor  # [b] int64

    def __init__(self, batch: Batch, index: Tensor) -> None:
        self.whole, self.index = batch, index

    def __getattr__(self, name: str) -> Any:
        value = _select(getattr(self.whole, name), self.index, 0 if name == "state" else 1)
        setattr(self, name, value)  # found without this method from now on
        return value


def rows_of(value: Any) -> Any:
    """[T, B, ...] -> [1, T x B, ...], leaf by leaf. A view."""
    if isinstance(value, dict):
        return {name: rows_of(tensor) for name, tensor in value.items()}
    return None if value is None else value.flatten(0, 1).unsqueeze(0)


def shuffled(lanes: int, epochs: int, seed: int, updates: int, stream: int = SHUFFLE_STREAM) -> np.ndarray:
    """[epochs, lanes] int64, a permutation of the lanes for every epoch.

    Counter-based: the order depends on the seed and on the number of updates only, so a resumed run shuffles as the
    first one would have.
    """
    key = [seed, stream]
    draws = (np.random.Generator(np.random.Philox(key=key, counter=[0, 0, epoch, updates])) for epoch in range(epochs))
    return np.stack([draw.permutation(lanes) for draw in draws])


def _select(value: Any, index: Tensor, axis: int) -> Any:
    if isinstance(value, dict):
        return {name: tensor.index_select(axis, index) for name, tensor in value.items()}
    return None if value is None else value.index_select(axis, index)
