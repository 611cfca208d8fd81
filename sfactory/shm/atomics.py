"""Shared words: single aligned 8-byte integers, each written by exactly one process at any moment.

Everything that one process signals to another through the arena is a word. Data is written first, then the word that
announces it; a reader reads the word first, then the data. On x86-64 stores become visible in program order and loads
are made in program order, which is sufficient; the protocol never needs a store to be visible before the same process's
next load.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

TOTAL_STORE_ORDER = ("x86_64", "amd64", "i686")
T = TypeVar("T")


def store(words: np.ndarray, index: int | tuple[int, ...], value: int) -> None:
    """Store one shared word. All shared words go through here, so a test can stop a worker at its n-th store."""
    words[index] = value


class Word(Generic[T]):
    """Attribute of a `Words` object: reads one shared word, and writes it with `store`."""

    def __init__(self, index: int, decode: Callable[[int], T], encode: Callable[[Any], int] = int) -> None:
        self.index, self.decode, self.encode = index, decode, encode

    def __get__(self, owner: Words, kind: type | None = None) -> T:
        return self.decode(int(owner.words[self.index]))

    def __set__(self, owner: Words, value: T) -> None:
        store(owner.words, self.index, self.encode(value))


class Words:
    """One row of shared words, with its words as attributes (`Word`)."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words  # [n] int64


def check_memory_order() -> None:
    """OSError on machines whose plain stores may become visible out of order: there the protocol would need fences."""
    machine = platform.machine().lower()
    if machine not in TOTAL_STORE_ORDER:
        raise OSError(
            f"this machine is {machine}: communication between processes relies on the store order of x86-64; "
            "use --run.mode lockstep, which runs everything in one process"
        )
