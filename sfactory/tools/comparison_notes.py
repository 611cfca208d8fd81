"""Collect the notes of a comparison: what several runs or groups have in common is said once, with their names."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMES = 6
"""Names in one note; of the others only the number is given."""


class Notes:
    """Notes in the order in which they first came."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str], dict[str, None]] = {}

    def add(self, text: str) -> None:
        """Add a note of its own."""
        self._notes.setdefault((text, ""), {})

    def of(self, name: str, one: str, several: str) -> None:
        """Add a note about `name`; one, several: what follows it, and what follows the names of several."""
        self._notes.setdefault((one, several), {})[name] = None

    def lines(self) -> tuple[str, ...]:
        """A sentence per note."""
        return tuple(_sentence(one, several, list(names)) for (one, several), names in self._notes.items())


def _sentence(one: str, several: str, names: Sequence[str]) -> str:
    if not names:
        return one
    if len(names) == 1:
        return f"{names[0]}{one}"
    shown = list(names) if len(names) <= MOST_NAMES else list(names[: MOST_NAMES - 1])
    last = shown.pop() if len(shown) == len(names) else f"{len(names) - len(shown)} more"
    return f"{', '.join(shown)} and {last}{several}"
