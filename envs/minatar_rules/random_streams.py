"""Random numbers of E games: those of E separate `np.random.RandomState`, read ahead.

A RandomState makes 32-bit words. `random_sample()` uses two of them and `randint(n)` uses as many as its rejection
needs, so the words alone determine every number, whatever the order of the calls (NumPy keeps this stream fixed:
NEP 19). A call of a RandomState costs 0.1 to 2 us; one number of every game costs 1 us here, a single number 0.4 us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

WORDS = 512
"""Words read ahead per game. More cost memory, and longer pauses for reading; fewer, more frequent pauses."""


class RandomStreams:
    """E streams of random numbers."""

    def __init__(self, num_envs: int) -> None:
        self._states = [np.random.RandomState(0) for _ in range(num_envs)]  # they continue after the words read
        self._words = np.zeros((num_envs, WORDS), np.int64)
        self._uniform = np.zeros((num_envs, WORDS))  # [env, i]: the number from words i and i + 1
        self._row = np.arange(num_envs) * WORDS
        self._next = self._row + WORDS  # flat index of the next word; here there is none
        self._unread = 0  # words that every stream has at least

    def seed(self, env: int, seed: int) -> None:
        """Start the stream of one game again."""
        self._states[env] = np.random.RandomState(seed)
        self._next[env], self._unread = self._row[env] + WORDS, 0

    def uniforms(self, envs: np.ndarray) -> np.ndarray:
        """Return one `random_sample()` of each of the games `envs` [k], [k] float64."""
        self._need(2)
        first = self._next[envs]
        self._next[envs] = first + 2
        return self._uniform.take(first)

    def uniform(self, env: int) -> float:
        """Return `random_sample()` of one game."""
        self._need(2)
        first = self._next.item(env)
        self._next[env] = first + 2
        return self._uniform.item(first)

    def below(self, env: int, size: int) -> int:
        """Return `randint(size)` of one game: the first word whose lowest bits are a number below `size`."""
        mask = (1 << (size - 1).bit_length()) - 1
        while mask:  # randint(1) draws nothing
            self._need(1)
            first = self._next.item(env)
            self._next[env] = first + 1
            number = self._words.item(first) & mask
            if number < size:
                return number
        return 0

    def _need(self, count: int) -> None:
        """Make sure that `count` words can be read from each stream, and count them as read."""
        self._unread -= count
        if self._unread < 0:
            self._read_ahead()
            self._unread -= count

    def _read_ahead(self) -> None:
        """Read words for every stream that has used half of its own."""
        position = self._next - self._row
        envs = (position > WORDS // 2).nonzero()[0]
        for env, used in zip(envs.tolist(), position[envs].tolist(), strict=True):
            row = self._words[env]
            row[: WORDS - used] = row[used:].copy()
            row[WORDS - used :] = self._states[env].randint(0, 1 << 32, used, np.uint32)
        self._next[envs] = self._row[envs]
        self._words_changed(envs)

    def _words_changed(self, envs: np.ndarray) -> None:
        high, low = self._words[envs, :-1] >> 5, self._words[envs, 1:] >> 6
        self._uniform[envs, :-1] = (high * 67108864.0 + low) / 9007199254740992.0  # 53 bits, as `random_sample` does
        self._unread = WORDS - int((self._next - self._row).max())

    def snapshot(self) -> list[Any]:
        """Return the generators and the words that were read and not used."""
        rows = zip(self._words, (self._next - self._row).tolist(), strict=True)
        return [self._states, [row[used:].astype(np.uint32) for row, used in rows]]

    def restore(self, state: Sequence[Any]) -> None:
        """Load the result of `snapshot`."""
        self._states, unused = state
        for env, words in enumerate(unused):
            self._next[env] = self._row[env] + WORDS - len(words)
            self._words[env, WORDS - len(words) :] = words
        self._words_changed(np.arange(len(unused)))
