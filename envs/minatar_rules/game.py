"""What the five games share: the interface, the screen, and the state of E games in arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from sfactory_envs.minatar_rules.random_streams import RandomStreams

NOOP, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
"""Actions, as in the package."""


def walks(top: int, bottom: int) -> np.ndarray:
    """Return the table 100 * action + cell -> the cell after it, within the screen and its rows `top` to `bottom`.

    A cell is 10 * y + x; [600].
    """
    action, y, x = np.indices((6, 10, 10))
    x += (action == RIGHT).astype(int) - (action == LEFT)
    y += (action == DOWN).astype(int) - (action == UP)
    return (10 * np.clip(y, top, bottom) + np.clip(x, 0, 9)).ravel()


class Game(ABC):
    """E copies of one game, in arrays with an axis for the games.

    An array operation on 16 games costs nearly as much as on one. So rules that depend on little are tables, and
    instead of timers that count down there are the times at which they end, on the clock of the group. What happens to
    one game now and then is done for this game alone.
    A game that is not playing, as the group says, is stepped too, because that costs less than leaving it out. It must
    not draw random numbers. Its reward and end are ignored and it is reset afterwards.
    """

    CHANNELS: ClassVar[int]
    STATE: ClassVar[tuple[str, ...]]
    """Names of the arrays that make up the state, besides the clock."""

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        self.num_envs, self.streams, self.ramping = num_envs, streams, ramping
        self.obs = np.zeros((num_envs, 10, 10, self.CHANNELS), bool)
        self._cells = self.obs.reshape(-1)  # the same memory
        self.clock = 0  # of the newest step
        self._first = np.arange(num_envs) * 100 * self.CHANNELS  # index of each game's first cell

    @abstractmethod
    def reset(self, envs: np.ndarray) -> None:
        """Begin a new episode in the games `envs` [k]."""

    @abstractmethod
    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Step all games: `action` [E] of the package's six, `playing` [E] bool.

        Return reward [E] float32 and terminal [E] bool.
        """

    @abstractmethod
    def draw(self) -> None:
        """Write the observations of all games to `obs`."""

    def snapshot(self) -> dict[str, Any]:
        """Return the state: the clock and arrays."""
        return {name: getattr(self, name) for name in ("clock", *self.STATE)}

    def restore(self, state: dict[str, Any]) -> None:
        """Load the result of `snapshot`."""
        for name in ("clock", *self.STATE):
            setattr(self, name, state[name])
