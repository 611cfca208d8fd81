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
    """Iterate over the leaves of nested Dict and Tuple spaces: name, path, space (`obs/image`, ("image",), Box).

    Raises EnvError for what a checkpoint cannot record: other keys than text and whole numbers, and floats of more than
    64 bits.
    """
    if not isinstance(space, Mapping | Sequence):  # gymnasium's Dict is a Mapping, its Tuple a Sequence
        if getattr(space, "dtype", None) is not None and space.dtype.kind == "f" and space.dtype.itemsize > 8:
            raise EnvError(f"the space {name} has dtype {space.dtype}; use float32 or float64")
        yield SpaceLeaf(name, path, space)
        return
    for key, child in space.items() if isinstance(space, Mapping) else enumerate(space):
        if not isinstance(key, str | int):
            raise EnvError(f"the Dict space {name} has the key {key!r}; use text or a whole number")
        yield from space_leaves(child, f"{name}/{key}", (*path, key))


class TupleParts(NamedTuple):
    """A Tuple space in an observation space: its name, the keys that lead to it, and how many parts it has."""

    name: str
    path: tuple[Any, ...]
    parts: int


def tuples_of(space: Any, name: str = "obs", path: tuple[Any, ...] = ()) -> Iterator[TupleParts]:
    """Iterate over the Tuple spaces in a space."""
    if isinstance(space, Mapping):
        for key, child in space.items():
            yield from tuples_of(child, f"{name}/{key}", (*path, key))
    elif isinstance(space, Sequence):
        yield TupleParts(name, path, len(space))
        for key, child in enumerate(space):
            yield from tuples_of(child, f"{name}/{key}", (*path, key))


def part_of(value: Any, path: Sequence[Any]) -> Any:
    """Return the part of an observation that these keys lead to. Raises ValueError for one that it does not have."""
    part = value
    for depth, key in enumerate(path):
        try:
            part = part[key]
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            inside = f" in {'/'.join(map(str, path[:depth]))!r}" if depth else ""
            raise ValueError(
                f"the observation has no {key!r}{inside}, which its space has: it is a {type(part).__name__}"
            ) from error
    return part


def check_tuples(value: Any, tuples: Sequence[TupleParts]) -> None:
    """Raise ValueError for a tuple of an observation with more or fewer parts than its space: some would be lost."""
    for name, path, count in tuples:
        parts = len(part_of(value, path))
        if parts != count:
            raise ValueError(f"{name} has {parts} parts, but its space has {count}")


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
