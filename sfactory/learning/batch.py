"""The learner's batch: slots side by side, and how it is cut into minibatches.

Legend: T steps, B lanes, K distribution parameters, H width of the recurrent state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

SHUFFLE_STREAM = 3
TRACE_ONLY = ("reward", "terminated", "truncated", "discounted_return")


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
    valid: Tensor  # [T, B] bool
    lag: Tensor  # [T, B] float, updates between acting and learning
    state: Tensor | None  # [B, H] recurrent state at row 0
    discounted_return: Tensor | None  # [T, B] running return of the raw reward

    def as_rows(self) -> Batch:
        """[1, T x B]: every row a lane of its own, for policies without memory. A view."""
        return Batch(**{name: rows_of(value) for name, value in self._asdict().items()})

    def lanes(self, index: Tensor | None) -> Batch:
        """The minibatch of those lanes; None is all of them, without a copy. What the trace alone needs is left out."""
        if index is None:
            return self
        pick: dict[str, Any] = {
            name: None if name in TRACE_ONLY else _pick(value, index, 0 if name == "state" else 1)
            for name, value in self._asdict().items()
        }
        return Batch(**pick)


def rows_of(value: Any) -> Any:
    """[T, B, ...] -> [1, T x B, ...], leaf by leaf. A view."""
    if isinstance(value, dict):
        return {name: rows_of(tensor) for name, tensor in value.items()}
    return None if value is None else value.flatten(0, 1).unsqueeze(0)


def shuffled(lanes: int, epochs: int, seed: int, updates: int) -> np.ndarray:
    """[epochs, lanes] int64, the lanes in another order for every epoch; counter-based, so a resume shuffles as the
    first run would have."""
    key = [seed, SHUFFLE_STREAM]
    draws = (np.random.Generator(np.random.Philox(key=key, counter=[0, 0, epoch, updates])) for epoch in range(epochs))
    return np.stack([draw.permutation(lanes) for draw in draws])


def _pick(value: Any, index: Tensor, axis: int) -> Any:
    if isinstance(value, dict):
        return {name: tensor.index_select(axis, index) for name, tensor in value.items()}
    return None if value is None else value.index_select(axis, index)
