"""What `step` and `reset` of an environment return, as the numbers and flags that a group needs.

Rewards are numbers of any library, also in arrays of one element; flags are booleans, or the numbers 0 and 1. Anything
else is an error that says what to change.
"""

from __future__ import annotations

import contextlib
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


def as_flags(values: Any, name: str, count: int) -> np.ndarray:
    """Return `terminated` or `truncated` of a vector environment as [count] bool. Raises ValueError for others."""
    flags = np.asarray(values)
    if flags.shape != (count,):
        if flags.size != count:
            raise ValueError(f"{name} has shape {flags.shape}, expected {(count,)}")
        flags = flags.reshape(count)
    if flags.dtype == bool:
        return flags
    if flags.dtype.kind not in "iuf" or not ((flags == 0) | (flags == 1)).all():
        raise ValueError(f"{name} must be True or False for every environment, got {flags[:8].tolist()}")
    return flags.astype(bool)


def check_time_limit(info: Any, truncated: bool) -> None:
    """Raise ValueError for the end of an episode that was not truncated, if `info` says so, as in the old API."""
    if not truncated and isinstance(info, Mapping) and (said := info.get("TimeLimit.truncated")) is not None and said:
        raise ValueError(
            "info says TimeLimit.truncated and step() returned terminated: return terminated False and truncated True "
            "at a time limit"
        )


FINAL_OBS = ("final_obs", "final_observation", "terminal_observation")
"""Keys under which environments that reset themselves in their last step give the last observation of the episode."""


def final_obs(info: Any) -> tuple[str, Any]:
    """The key and the value of the last observation in `info`; an empty key if it has none."""
    if isinstance(info, Mapping):
        for key in FINAL_OBS:
            if info.get(key) is not None:
                return key, info[key]
    return "", None


def unread_mask(env: Any, info: Any) -> str:
    """Where a single environment says which actions are allowed, apart from its observation; empty if it does not."""
    if isinstance(info, Mapping) and "action_mask" in info:
        return "the info of reset() has an action_mask"
    with contextlib.suppress(Exception):  # of a __getattr__ of the user's own
        if callable(getattr(env.unwrapped, "action_masks", None)):
            return "the environment has a method action_masks"
    return ""


def wrong_step(result: Any) -> ValueError:
    """The error for a `step` that does not return five values."""
    count = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
    return ValueError(f"step() returned {count}, it {FIVE}")


def reset_obs(result: Any, space: Any) -> Any:
    """Return the observation from what `reset` returned. Raises ValueError if that is not (observation, info)."""
    pair = isinstance(result, tuple | list) and len(result) == 2
    # The old API returns the observation alone, which may be a Tuple of two.
    if pair and (isinstance(result[1], Mapping | None) or not (isinstance(space, Sequence) or _is_number(result[1]))):
        return result[0]
    size = f" of shape {result.shape}" if hasattr(result, "shape") else ""
    raise ValueError(f"reset() returned a {type(result).__name__}{size}, it {TWO}")


def _is_number(value: Any) -> bool:
    """Whether a value is a number or an array, as the second half of an observation of two numbers."""
    return hasattr(value, "shape") or (isinstance(value, int | float) and not isinstance(value, bool))


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
    elif isinstance(error, TypeError) and "reset() missing" in text and "argument: 'options'" in text:
        hint = "write options=None; what it needs are arguments of the class (--env.settings.NAME VALUE)"
    if not hint:
        return error
    better = type(error)(f"{text}: {hint}")
    better.__cause__, better.__traceback__ = error, error.__traceback__
    return better
