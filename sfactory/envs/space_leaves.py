"""The leaves of a gymnasium space: nested Dict and Tuple spaces become flat names.

Dict and Tuple spaces become leaves that are named by their path (`obs/image`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sfactory.errors import EnvError, suggest

UNSUPPORTED = "is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"


class SpaceLeaf(NamedTuple):
    """One leaf of a space: its name, the keys that lead to it, and its own space."""

    name: str
    path: tuple[Any, ...]
    space: Any


def space_leaves(space: Any, name: str, path: tuple[Any, ...] = ()) -> Iterator[SpaceLeaf]:
    """Iterate over the leaves of nested Dict and Tuple spaces: name, path, space (`obs/image`, ("image",), Box)."""
    if not isinstance(space, Mapping | Sequence):  # gymnasium's Dict is a Mapping, its Tuple a Sequence
        yield SpaceLeaf(name, path, space)
        return
    for key, child in space.items() if isinstance(space, Mapping) else enumerate(space):
        yield from space_leaves(child, f"{name}/{key}", (*path, key))


def kept_leaves(env: str, space: Any, drop: Sequence[str] = ()) -> list[SpaceLeaf]:
    """Return the leaves of an observation space without those that `env.drop` names.

    A name is that of a leaf or of a Dict or Tuple of leaves, with or without `obs/`. Raises EnvError for a name that
    does not exist, and if nothing is left.
    """
    leaves = list(space_leaves(space, "obs"))
    dropped: set[str] = set()
    for word in drop:
        full = f"obs/{word}"
        found = _named(word, leaves) or _named(full, leaves) if word.startswith("obs/") else _named(full, leaves)
        found = found or _named(word, leaves)  # `obs` itself
        if not found:
            known = [leaf.name.removeprefix("obs/") for leaf in leaves]
            raise EnvError(f"{env}: env.drop {word}: the observation has no such leaf{suggest(word, known)}")
        dropped |= found
    kept = [leaf for leaf in leaves if leaf.name not in dropped]
    if dropped and not kept:
        raise EnvError(f"{env}: env.drop {','.join(drop)} leaves nothing of the observation; keep at least one leaf")
    return kept


def _named(name: str, leaves: Sequence[SpaceLeaf]) -> set[str]:
    """Names of the leaves that a name stands for."""
    return {leaf.name for leaf in leaves if leaf.name == name or leaf.name.startswith(f"{name}/")}
