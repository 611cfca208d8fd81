"""The leaves of a gymnasium space: nested Dict and Tuple spaces become flat names.

Dict and Tuple spaces become leaves that are named by their path (`obs/image`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

UNSUPPORTED = "is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"


def space_leaves(space: Any, name: str, path: tuple[Any, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...], Any]]:
    """Iterate over the leaves of nested Dict and Tuple spaces: name, path, space (`obs/image`, ("image",), Box)."""
    if not isinstance(space, Mapping | Sequence):  # gymnasium's Dict is a Mapping, its Tuple a Sequence
        yield name, path, space
        return
    for key, child in space.items() if isinstance(space, Mapping) else enumerate(space):
        yield from space_leaves(child, f"{name}/{key}", (*path, key))
