"""Action spaces: the leaf of a space, the conversion of its array into actions, and the action mask.

    space                               leaf
    Discrete, MultiDiscrete, MultiBinary  one category per number, counted from the start of the space
    Box of floats                         numbers, clipped to the bounds
    Box of integers or booleans           one category per number, if it has at most MAX_CATEGORIES values
    a space without numbers               none; the environment receives its empty array

Environments receive arrays and numbers of the shape and dtype of their own space. The key `action_mask` of a Dict
observation (1 for each action that is allowed now) masks the policy in inference and in the learner; both read it from
the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sfactory.envs.space_leaves import UNSUPPORTED, space_leaves
from sfactory.envs.spec import ActionLeaf, Leaf
from sfactory.errors import EnvError

MAX_CATEGORIES = 1024
"""Values of one number of an integer Box that are still chosen one by one."""

Decode = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Action leaf [E, ...] and flags [E], set for illegal rows -> actions [E, *space.shape] in the dtype of the space."""


class ActionPart(NamedTuple):
    """One leaf of an action space."""

    name: str
    path: tuple[Any, ...]
    space: Any
    leaf: ActionLeaf
    start: np.ndarray
    """First value of each category; 0 for numbers."""
    decode: Decode

    @property
    def empty(self) -> bool:
        """Whether there are no numbers to choose."""
        return 0 in self.leaf.shape

    def rows(self, actions: np.ndarray) -> list[Any]:
        """Split actions [E, ...] into one per environment: what `space.sample()` would return."""
        if self.leaf.kind == "box" and self.space.shape == ():
            return [actions[env, ...] for env in range(len(actions))]  # arrays without axes; a list holds scalars
        return list(actions)


class ActionSpace:
    """The leaves of an action space, and the conversion of a policy's actions to actions of the environment.

    Raises EnvError for a space that is not supported, and for one without any number.
    """

    def __init__(self, env: str, space: Any) -> None:
        self.space = space
        parts = [action_part(name, path, child) for name, path, child in space_leaves(space, "action")]
        self.parts = parts
        self.leaves = {part.name: part.leaf for part in parts if not part.empty}
        if not self.leaves:
            raise EnvError(
                f"{env}: action space {one_line_space(space)} has no numbers, so there is nothing to choose; use "
                "Discrete(1) for an action without effect"
            )
        self.nested = parts[0].name != "action"

    def arrays(self, action: Mapping[str, np.ndarray], illegal: np.ndarray) -> list[np.ndarray]:
        """Actions of every part, [E, *shape] in its dtype. Sets the flags [E] of rows with an illegal action."""
        nothing = np.zeros(0)  # leaves without numbers are not in the spec
        return [part.decode(action.get(part.name, nothing), illegal) for part in self.parts]

    def rows(self, action: Mapping[str, np.ndarray], illegal: np.ndarray) -> list[Any]:
        """One action per environment, nested as the space is; see `arrays`."""
        if not self.nested:
            part = self.parts[0]
            return part.rows(part.decode(action[part.name], illegal))
        arrays = self.arrays(action, illegal)
        rows = [part.rows(array) for part, array in zip(self.parts, arrays, strict=True)]
        return [self.nest(row) for row in zip(*rows, strict=True)]

    def nest(self, values: Sequence[Any]) -> Any:
        """Nest one value per part as the space is."""
        return _nested(self.space, iter(values))


def _nested(space: Any, parts: Iterator[Any]) -> Any:
    if isinstance(space, Mapping):
        return {key: _nested(child, parts) for key, child in space.items()}
    if isinstance(space, Sequence):
        return tuple(_nested(child, parts) for child in space)
    return next(parts)


def action_part(name: str, path: tuple[Any, ...], space: Any) -> ActionPart:
    """Return one leaf of an action space. Raises EnvError, with what to use instead, if it is not supported."""
    from gymnasium import spaces

    kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()  # the shape is None for unsupported spaces
    if isinstance(space, kinds) and 0 in shape:
        return _empty(name, path, space)
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        low, high = (tuple(map(float, bound.ravel())) for bound in (space.low, space.high))
        return _numbers(name, path, space, ActionLeaf(space.shape, "float32", "box", (len(low),), low, high))
    if isinstance(space, spaces.Box) and space.dtype.kind in "biu":
        sizes, start = _values_of_box(name, space)
    elif isinstance(space, kinds) and not isinstance(space, spaces.Box):
        count = 2 if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", 0))
        sizes = np.broadcast_to(np.asarray(count, np.int64), shape)
        start = np.asarray(getattr(space, "start", 0), np.int64)
    else:
        raise EnvError(f"action space {name}: {one_line_space(space)} {UNSUPPORTED}")
    return _categories(name, path, space, sizes, start)


def _empty(name: str, path: tuple[Any, ...], space: Any) -> ActionPart:
    """A space without numbers."""

    def decode(values: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        return np.zeros((len(illegal), *space.shape), space.dtype)

    return ActionPart(
        name, path, space, ActionLeaf(space.shape, "float32", "box", (0,)), np.zeros((), np.int64), decode
    )


def _numbers(name: str, path: tuple[Any, ...], space: Any, leaf: ActionLeaf) -> ActionPart:
    """A Box of floats."""
    low, high, dtype = space.low, space.high, space.dtype

    def decode(values: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        legal = np.isfinite(values)
        if not legal.all():
            illegal |= ~legal.reshape(len(values), -1).all(axis=1)
            values = np.where(legal, values, 0)
        # The slot keeps the unclipped sample, because log_prob belongs to that one.
        return np.clip(values, low, high).astype(dtype, copy=False)

    return ActionPart(name, path, space, leaf, np.zeros((), np.int64), decode)


def _categories(name: str, path: tuple[Any, ...], space: Any, sizes: np.ndarray, start: np.ndarray) -> ActionPart:
    """A space of categories: `sizes` and `start` are [*space.shape]. The leaf is flat: one head per number."""
    shape = () if space.shape == () else (int(sizes.size),)
    leaf = ActionLeaf(shape, "int64", "discrete", tuple(np.ravel(sizes).tolist()))
    flat_sizes = sizes.reshape(shape)
    flat_start = np.array(np.broadcast_to(start, space.shape).reshape(shape))
    deep, dtype = len(space.shape) > 1, space.dtype

    def decode(values: np.ndarray, illegal: np.ndarray) -> np.ndarray:
        legal = (values >= 0) & (values < flat_sizes)
        if not legal.all():
            illegal |= ~legal.reshape(len(values), -1).all(axis=1)
            values = np.where(legal, values, 0)
        decoded = (values + flat_start).astype(dtype, copy=False)
        return decoded.reshape(len(values), *space.shape) if deep else decoded

    return ActionPart(name, path, space, leaf, flat_start, decode)


def _values_of_box(name: str, space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Number of values and first value of every number of an integer Box, [*shape]."""
    low = [int(bound) for bound in space.low.ravel()]  # Python's integers do not overflow
    high = [int(bound) for bound in space.high.ravel()]
    counts = [b - a + 1 for a, b in zip(low, high, strict=True)]
    fits = min(low) >= -(2**63) and max(high) < 2**63
    if max(counts) > MAX_CATEGORIES or not fits:
        bounded = max(counts) < 2**31 and fits
        most = f"{max(counts):,} values per number" if bounded else "no finite bounds"
        categories = f"{_as_categories(counts, low)} for categories, or " if bounded else ""
        raise EnvError(
            f"action space {name}: {one_line_space(space)} has {most}, and at most {MAX_CATEGORIES:,} are chosen one "
            f"by one; use {categories}a Box of float32 for quantities"
        )
    shape = space.shape
    return np.array(counts, np.int64).reshape(shape), np.array(low, np.int64).reshape(shape)


def _as_categories(counts: list[int], low: list[int]) -> str:
    """The space of categories with these numbers of values and first values, as it is written."""
    if len(counts) == 1:
        return f"Discrete({counts[0]}, start={low[0]})"
    if len(set(counts)) == len(set(low)) == 1:
        return f"MultiDiscrete([{counts[0]}] * {len(counts)}, start=[{low[0]}] * {len(low)})"
    return f"MultiDiscrete({counts}, start={low})" if len(counts) < 7 else "MultiDiscrete"


def one_line_space(space: Any) -> str:
    """Describe a space on one line, without the addresses of functions."""
    text = " ".join(str(space).split())
    return type(space).__name__ if " at 0x" in text or len(text) > 200 else text


def mask_leaf(env: str, obs: Mapping[str, Leaf], actions: Mapping[str, ActionLeaf]) -> str:
    """Return the name of the action mask among the observations, or "". Raises EnvError if its shape does not fit."""
    found = [name for name in obs if "action_mask" in name.split("/")]  # also the parts of a Dict or Tuple
    if not found:
        return ""
    logits = sum(sum(leaf.sizes) for leaf in actions.values() if leaf.kind == "discrete")
    drop = "to train without a mask, --env.drop action_mask"
    if any(leaf.kind != "discrete" for leaf in actions.values()):
        raise EnvError(f"{env}: {', '.join(found)} cannot mask these actions: only discrete ones have a mask; {drop}")
    if len(found) > 1 or obs[found[0]].shape != (logits,):
        shapes = ", ".join(f"{name} of shape {obs[name].shape}" for name in found)
        raise EnvError(
            f"{env}: {shapes} cannot mask these actions; expected one leaf of shape ({logits},), one flag per choice, "
            f"those of all actions one after the other; {drop}"
        )
    return found[0]
