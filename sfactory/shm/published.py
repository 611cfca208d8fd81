"""Numbers that one process publishes and every other process reads whole, without locks or waits.

Two buffers and a count of publications, whose parity tells the newest buffer. The writer fills the other buffer, then
raises the count. A reader copies the newest buffer and reads the count again: the writer changes this buffer only after
it has raised the count, so a copy is whole if the count is still the same. Nothing is left locked by a process that is
killed.
"""

from __future__ import annotations

import numpy as np

from sfactory.shm import atomics
from sfactory.shm.arena import Arena, Field


def published_layout(size: int, name: str = "published") -> dict[str, Field]:
    """Arrays for `size` numbers."""
    return {f"{name}_count": Field((8,), "int64"), name: Field((2, size), "float64")}


class Published:
    """`write` by one process alone, `read` by any."""

    def __init__(self, arena: Arena, name: str = "published") -> None:
        self._count, self._buffers = arena[f"{name}_count"], arena[name]

    def write(self, numbers: np.ndarray) -> None:
        """Publish numbers, float64 [size]."""
        count = int(self._count[0]) + 1
        self._buffers[count % 2] = numbers
        atomics.store(self._count, 0, count)

    @property
    def publications(self) -> int:
        """How often `write` has published."""
        return int(self._count[0])

    def read(self) -> np.ndarray:
        """A copy of the newest numbers; zeros before the first."""
        while True:  # again only if the writer has published meanwhile
            count = int(self._count[0])
            numbers = self._buffers[count % 2].copy()
            if int(self._count[0]) == count:
                return numbers
