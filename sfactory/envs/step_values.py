"""What `step` and `reset` of an environment return, as the numbers and flags that a group needs.

Rewards are numbers of any library, also in arrays of one element; flags are booleans, or the numbers 0 and 1. Anything
else is an error that says what to change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PLAIN_NUMBERS = frozenset(
    {float, int, np.float64, np.float32, np.int64, np.int32, np.float16, np.bool_, bool, np.uint8, np.int8, np.int16}
)
"""Types of rewards that an array takes as they are."""
PLAIN_FLAGS = frozenset({bool, np.bool_})
"""Types of flags that need no check."""
FIVE = (
    "must return five values: observation, reward, terminated, truncated, info (four are the old API of gym: its done "
    "is terminated here, and a time limit is truncated)"
)
TWO = "must return two values: observation, info (the observation alone is the old API of gym)"


def as_reward(value: Any) -> float:
    """Return a reward as a float. Raises ValueError for what is not one number."""
    if isinstance(value, str | bytes):
        raise ValueError(f"the reward is the text {value!r}, it must be one number")
    if hasattr(value, "shape") or isinstance(value, Sequence):
        array = np.asarray(value)
        if array.size != 1:
            raise ValueError(f"the reward has shape {array.shape}, it must be one number")
        value = array.reshape(())[()]
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except TypeError as error:
        raise ValueError(f"the reward is {value!r} of type {type(value).__name__}, it must be one number") from error


def as_flag(value: Any, name: str) -> bool:
    """Return `terminated` or `truncated` as a bool. Raises ValueError for what is neither true nor false."""
    if type(value) in PLAIN_FLAGS:
        return bool(value)
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"{name} has shape {array.shape}, it must be True or False")
    one = array.reshape(())[()]
    if array.dtype.kind not in "biuf" or (one != 0 and one != 1):
        raise ValueError(f"{name} is {value!r} of type {type(value).__name__}, it must be True or False")
    return bool(one)


def wrong_step(result: Any) -> ValueError:
    """The error for a `step` that does not return five values."""
    count = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
    return ValueError(f"step() returned {count}, it {FIVE}")


def reset_obs(result: Any, space: Any) -> Any:
    """Return the observation from what `reset` returned. Raises ValueError if that is not (observation, info)."""
    pair = isinstance(result, tuple | list) and len(result) == 2
    # The old API returns the observation alone, which may be a Tuple of two.
    if pair and (isinstance(result[1], Mapping | None) or not isinstance(space, Sequence)):
        return result[0]
    size = f" of shape {result.shape}" if hasattr(result, "shape") else ""
    raise ValueError(f"reset() returned a {type(result).__name__}{size}, it {TWO}")


def explained(error: Exception) -> Exception:
    """An exception of `step` or `reset`, with what to change if it comes from the old API of gym.

    Wrappers call `step` and `reset` too, and raise what Python raises for other numbers of values and arguments.
    """
    text, hint = str(error), ""
    if isinstance(error, ValueError) and "values to unpack (expected 5" in text:
        hint = f"step() {FIVE}"
    elif isinstance(error, ValueError) and "values to unpack (expected 2" in text:
        hint = f"reset() {TWO}"
    elif isinstance(error, TypeError) and (
        "unexpected keyword argument 'seed'" in text or "unexpected keyword argument 'options'" in text
    ):
        hint = "write reset(self, *, seed=None, options=None) and begin it with super().reset(seed=seed)"
    if not hint:
        return error
    better = type(error)(f"{text}: {hint}")
    better.__cause__, better.__traceback__ = error, error.__traceback__
    return better
