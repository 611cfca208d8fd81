"""SharedState words: single aligned 8-byte integers, each written by exactly one process at any moment.

Everything that one process tells another through the arena is a word. Data is written first, then the word that
announces it; a reader reads the word first, then the data. On x86-64 stores are seen in program order and loads are
made in program order, which is all this needs; nothing rests on "store mine, then load yours".
"""

from __future__ import annotations

import platform

import numpy as np

TOTAL_STORE_ORDER = ("x86_64", "amd64", "i686")


def store(words: np.ndarray, index: int | tuple[int, ...], value: int) -> None:
    """Store one shared word. All shared words go through here, so a test can stop a worker at its n-th store."""
    words[index] = value


def to_bits(value: float) -> int:
    """A float as one word."""
    return int(np.float64(value).view(np.int64))


def from_bits(word: int) -> float:
    """The inverse of `to_bits`."""
    return float(np.int64(word).view(np.float64))


def check_memory_order() -> None:
    """Refuse machines on which plain stores may be seen out of order: there the protocol would need fences."""
    machine = platform.machine().lower()
    if machine not in TOTAL_STORE_ORDER:
        raise OSError(
            f"this machine is {machine}: the hand-over between processes relies on the store order of x86-64; "
            "use --run.mode lockstep, which needs no hand-over between processes"
        )
