"""Installed environment families: entry points of the group `sfactory.envs`, of this and of other packages."""

from __future__ import annotations

import functools
import os
import sys
from importlib.metadata import EntryPoint, entry_points

ENV_GROUP = "sfactory.envs"


def families() -> dict[str, EntryPoint]:
    """List the installed environment families by name, without importing them.

    Every group of environments asks for its family, and reading the entry points of 170 packages takes 5 to 15 ms. So
    they are read again only where a folder of packages has changed: where something was installed or removed.
    """
    return dict(_families((*map(_state, sys.path), *map(id, sys.meta_path))))


@functools.lru_cache(maxsize=1)
def _families(packages: tuple[object, ...]) -> dict[str, EntryPoint]:
    """Read all entry points. packages: what they depend on."""
    return {point.name: point for point in sorted(entry_points(group=ENV_GROUP), key=lambda point: point.name)}


def _state(folder: str) -> tuple[int, int, int] | None:
    """Identity and last change of a folder of packages, None where it does not exist."""
    try:
        found = os.stat(folder or ".")
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns
