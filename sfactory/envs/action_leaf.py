"""Action spaces: the leaf of a space, the function that decodes its array into actions, and the action mask.

The key `action_mask` of a Dict observation (1 for each action that is allowed now) masks the policy in inference and in
the learner; both read it from the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sfactory.envs.space_leaves import UNSUPPORTED
from sfactory.envs.spec import ActionLeaf, Leaf
from sfactory.errors import EnvError

Decode = Callable[[np.ndarray, np.ndarray], list[Any]]
"""Action leaf [E, ...] and flags [E], which it sets for illegal rows -> one action per environment."""


def assemble(space: Any, parts: Iterator[Any]) -> Any:
    """Build the nested action of one environment from its leaves, in the order of `space_leaves`."""
    if isinstance(space, Mapping):
        return {key: assemble(child, parts) for key, child in space.items()}
    if isinstance(space, Sequence):
        return tuple(assemble(child, parts) for child in space)
    return next(parts)


def action_leaf(name: str, space: Any) -> tuple[ActionLeaf, Decode]:
    """Return the leaf of one action space and the function that decodes its array into one action per environment."""
    from gymnasium import spaces

    shape: tuple[int, ...] = space.shape or ()  # the shape is None for unsupported spaces
    sizes = start = np.zeros((), np.int64)
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        low, high = (tuple(map(float, bound.ravel())) for bound in (space.low, space.high))
        leaf = ActionLeaf(shape, "float32", "box", (len(low),), low, high)
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) and len(shape) < 2:
        count = 2 if isinstance(space, spaces.MultiBinary) else getattr(space, "nvec", getattr(space, "n", 0))
        sizes = np.broadcast_to(count, shape)
        start = np.asarray(getattr(space, "start", 0))
        leaf = ActionLeaf(shape, "int64", "discrete", tuple(np.ravel(sizes).tolist()))
    else:
        raise EnvError(f"action space {name}: {space} {UNSUPPORTED}")

    def decode(values: np.ndarray, illegal: np.ndarray) -> list[Any]:
        box = leaf.kind == "box"
        legal = np.isfinite(values) if box else (values >= 0) & (values < sizes)
        if not legal.all():
            illegal |= ~legal.reshape(len(values), -1).all(axis=1)
            values = np.where(legal, values, 0)
        # The slot keeps the unclipped sample, because log_prob belongs to that one.
        decoded = np.clip(values, space.low, space.high) if box else values + start
        return list(decoded.astype(space.dtype, copy=False))

    return leaf, decode


def mask_leaf(env: str, obs: Mapping[str, Leaf], actions: Mapping[str, ActionLeaf]) -> str:
    """Return the name of the action mask among the observations, or "". Raises EnvError if its shape does not fit."""
    found = [name for name in obs if name.rpartition("/")[2] == "action_mask"]
    if not found:
        return ""
    logits = sum(sum(leaf.sizes) for leaf in actions.values() if leaf.kind == "discrete")
    if len(found) > 1 or any(leaf.kind != "discrete" for leaf in actions.values()) or obs[found[0]].shape != (logits,):
        raise EnvError(
            f"{env}: {', '.join(found)} of shape {obs[found[0]].shape} cannot mask these actions; expected one leaf of "
            f"shape ({logits},), one flag per choice, and only discrete actions"
        )
    return found[0]
