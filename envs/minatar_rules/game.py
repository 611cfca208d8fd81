"""What the five games share: the screen, and the state of E games in arrays."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sfactory_envs.minatar_rules.random_streams import RandomStreams

LEFT, UP, RIGHT, DOWN, FIRE = 1, 2, 3, 4, 5
"""Actions, as in the package; 0 does nothing."""


def per_action(**moves: int) -> np.ndarray:
    """Return a table action -> number, 0 where none is given: `per_action(left=-1, right=1)`."""
    names = {"left": LEFT, "up": UP, "right": RIGHT, "down": DOWN, "fire": FIRE}
    table = np.zeros(6, np.int64)
    for name, number in moves.items():
        table[names[name]] = number
    return table


STEP_X, STEP_Y = per_action(left=-1, right=1), per_action(up=-1, down=1)


class Game:
    """E copies of one game, in arrays with an axis for the games.

    A game of which the group says that it is not playing is stepped too, because that costs less than leaving it out.
    It must not draw random numbers. Its reward and end are ignored and it is reset afterwards.
    """

    CHANNELS: ClassVar[int]
    STATE: ClassVar[tuple[str, ...]]
    """Names of the attributes that make up the state, all arrays."""

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        self.num_envs, self.streams, self.ramping = num_envs, streams, ramping
        self.obs = np.zeros((num_envs, 10, 10, self.CHANNELS), bool)
        self._cells = self.obs.reshape(-1)  # the same memory
        self._first = np.arange(num_envs) * 100 * self.CHANNELS  # index of each game's first cell

    def reset(self, envs: np.ndarray) -> None:
        """Begin a new episode in the games `envs` [k]."""
        raise NotImplementedError

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Step all games: `action` [E] of the package's six, `playing` [E] bool. Return reward and terminal, [E]."""
        raise NotImplementedError

    def draw(self) -> None:
        """Write the observations of all games to `obs`."""
        raise NotImplementedError

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return the arrays of the state."""
        return {name: getattr(self, name) for name in self.STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the result of `snapshot`."""
        for name in self.STATE:
            setattr(self, name, state[name])
