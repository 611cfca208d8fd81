"""Random numbers of E games: those of E separate `np.random.RandomState`, read ahead and handed out as arrays.

A RandomState makes 32-bit words. `random_sample()` uses two of them and `randint(n)` uses as many as its rejection
needs, so the words alone determine every number, whatever the order of the calls (NumPy keeps this stream fixed:
NEP 19). A call of a RandomState costs 0.1 to 2 us, an array operation over all games 0.3 us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

WORDS = 512
"""Words read ahead per game. More cost memory, and longer pauses for reading; fewer, more frequent pauses."""
MASKS = np.array([(1 << n.bit_length()) - 1 for n in range(64)])
"""Largest wanted number -> the bits of a word that NumPy looks at."""


class RandomStreams:
    """E streams of random numbers. `envs` [k] are the games that draw, each at most once in a call."""

    def __init__(self, num_envs: int) -> None:
        self._states = [np.random.RandomState(0) for _ in range(num_envs)]  # they continue after the words read
        self._words = np.zeros((num_envs, WORDS), np.int64)
        self._uniform = np.zeros((num_envs, WORDS))  # [env, i]: the number from words i and i + 1
        self._position = np.full(num_envs, WORDS)  # of the next word
        self._row = np.arange(num_envs) * WORDS
        self._unread = 0  # words that every stream has at least

    def seed(self, env: int, seed: int) -> None:
        """Begin the stream of one game anew."""
        self._states[env] = np.random.RandomState(seed)
        self._position[env], self._unread = WORDS, 0

    def uniform(self, envs: np.ndarray) -> np.ndarray:
        """Return `random_sample()` of each game, [k] float64."""
        return self._uniform.take(self._next(envs, 2))

    def below(self, envs: np.ndarray, size: np.ndarray) -> np.ndarray:
        """Return `randint(size)` of each game, [k] int64; `size` [k] is 1 to 64."""
        number, largest = np.zeros(len(envs), np.int64), size - 1
        waiting = largest.nonzero()[0]  # randint(1) draws nothing
        while waiting.size:
            most = largest[waiting]
            word = self._words.take(self._next(envs[waiting], 1)) & MASKS[most]
            number[waiting] = word
            waiting = waiting[word > most]  # rejected: drawn again
        return number

    def _next(self, envs: np.ndarray, count: int) -> np.ndarray:
        """Advance by `count` words and return the flat index of the first of them, [k]."""
        self._unread -= count
        if self._unread < 0:
            self._read_ahead()
            self._unread -= count
        position = self._position[envs]
        self._position[envs] = position + count
        return self._row[envs] + position

    def _read_ahead(self) -> None:
        """Read words for every stream that has used half of its own."""
        envs = (self._position > WORDS // 2).nonzero()[0]
        for env in envs.tolist():
            row, used = self._words[env], int(self._position[env])
            row[: WORDS - used] = row[used:].copy()
            row[WORDS - used :] = self._states[env].randint(0, 1 << 32, used, np.uint32)
            self._position[env] = 0
        high, low = self._words[envs, :-1] >> 5, self._words[envs, 1:] >> 6
        self._uniform[envs, :-1] = (high * 67108864.0 + low) / 9007199254740992.0  # 53 bits, as `random_sample` does
        self._unread = WORDS - int(self._position.max())

    def snapshot(self) -> list[Any]:
        """Return the generators and the words that were read and not used."""
        rows = zip(self._words, self._position.tolist(), strict=True)
        return [self._states, [row[used:] for row, used in rows]]

    def restore(self, state: Sequence[Any]) -> None:
        """Load the result of `snapshot`."""
        self._states, unused = state
        for env, words in enumerate(unused):
            self._position[env] = WORDS - len(words)
            self._words[env, WORDS - len(words) :] = words
        high, low = self._words[:, :-1] >> 5, self._words[:, 1:] >> 6
        self._uniform[:, :-1] = (high * 67108864.0 + low) / 9007199254740992.0
        self._unread = WORDS - int(self._position.max())
