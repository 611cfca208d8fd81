"""Observation spaces: the leaf of a space, and the function that reads it from an observation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sfactory.envs.space_leaves import UNSUPPORTED
from sfactory.envs.spec import Leaf
from sfactory.errors import EnvError

Observe = Callable[[Any], Any]
"""Observation of one environment -> array of one leaf."""


def obs_leaf(name: str, path: Iterable[Any], space: Any) -> tuple[Leaf, Observe]:
    """Return the leaf of one observation space and the function that reads it. Categories become one-hot vectors."""
    from gymnasium import spaces

    def read(obs: Any) -> Any:
        for key in path:
            obs = obs[key]
        return obs

    if isinstance(space, spaces.Box):
        integer = "uint8" if space.dtype == np.uint8 else "int64"
        return Leaf(space.shape, {"f": "float32", "b": "bool"}.get(space.dtype.kind, integer)), read
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Leaf((spaces.flatdim(space),), "bool"), lambda obs: np.asarray(spaces.flatten(space, read(obs)), bool)
    raise EnvError(f"observation space {name}: {space} {UNSUPPORTED}")
