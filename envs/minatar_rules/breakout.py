"""Breakout: a ball that moves along diagonals, three rows of bricks, a paddle in the bottom row.

A brick counts only if the ball was not in a brick the step before. New bricks come when the ball reaches the bottom
row and none is left.
"""

from __future__ import annotations

import numpy as np
from sfactory_envs.minatar_rules.game import STEP_X, Game
from sfactory_envs.minatar_rules.random_streams import RandomStreams

PADDLE, BALL, TRAIL, BRICK = range(4)  # channels


class Breakout(Game):
    """E games of Breakout."""

    CHANNELS = 4
    STATE = ("paddle", "x", "y", "step_x", "step_y", "trail", "inside", "bricks", "left")

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.paddle, self.x, self.y, self.step_x, self.step_y = np.zeros((5, num_envs), np.int64)
        self.trail = np.zeros(num_envs, np.int64)  # cell of the ball one step before, 10 * y + x
        self.inside = np.zeros(num_envs, bool)  # the ball is in a brick
        self.bricks = np.zeros((num_envs, 10, 10), bool)
        self.left = np.zeros(num_envs, np.int64)  # number of bricks
        self._board = np.arange(num_envs) * 100

    def reset(self, envs: np.ndarray) -> None:
        right = self.streams.below(envs, np.full(len(envs), 2))  # the ball starts at the left or the right wall
        self.paddle[envs], self.x[envs], self.y[envs] = 4, 9 * right, 3
        self.step_x[envs], self.step_y[envs] = 1 - 2 * right, 1
        self.trail[envs], self.inside[envs] = 30 + 9 * right, False
        self.bricks[envs] = False
        self._new_bricks(envs)

    def _new_bricks(self, envs: np.ndarray) -> None:
        self.bricks[envs, 1:4], self.left[envs] = True, 30

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        paddle = self.paddle = np.minimum(np.maximum(self.paddle + STEP_X[action], 0), 9)
        x, y, bricks = self.x, self.y, self.bricks.reshape(-1)
        ahead, new_y = x + self.step_x, y + self.step_y
        new_x = np.minimum(np.maximum(ahead, 0), 9)
        wall, top, bottom = ahead != new_x, new_y < 0, new_y == 9
        new_y = np.minimum(np.maximum(new_y, 0), 9)  # 10 only in a game that is over
        cell = self._board + 10 * new_y + new_x
        brick = bricks[cell]
        broken = brick & ~self.inside
        bricks[cell[broken]] = False
        self.left -= broken
        centre = bottom & (x == paddle)  # above the paddle before it falls
        corner = bottom & (new_x == paddle) & ~centre
        back = broken | centre | corner  # the ball keeps its row
        empty = (bottom & (self.left == 0)).nonzero()[0]
        if empty.size:
            self._new_bricks(empty)
        np.negative(self.step_x, out=self.step_x, where=wall ^ corner)
        np.negative(self.step_y, out=self.step_y, where=top | back)
        self.trail, self.inside = 10 * y + x, brick
        self.x, self.y = new_x, np.where(back, y, new_y)
        return broken, bottom & ~back

    def draw(self) -> None:
        first, cells = self._first, self._cells
        cells.fill(False)
        self.obs[:, 1:4, :, BRICK] = self.bricks[:, 1:4]
        cells[first + 4 * (10 * self.y + self.x) + BALL] = True
        cells[first + 4 * self.trail + TRAIL] = True
        cells[first + 4 * (90 + self.paddle) + PADDLE] = True
