"""Breakout: a ball that moves along diagonals, three rows of bricks, a paddle in the bottom row.

A brick counts only if the ball was not in a brick the step before. New bricks come when the ball reaches the bottom
row and none is left.

Ball and paddle are one number of 4,000: ((10 * y + x) * 4 + heading) * 10 + paddle, y and x of the ball. Bit 0 of the
heading is set if the ball moves left, bit 1 if it moves up. What the paddle does, and what the ball does with and
without breaking a brick, are tables.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sfactory_envs.minatar_rules.game import Game, walks
from sfactory_envs.minatar_rules.random_streams import RandomStreams

PADDLE, BALL, TRAIL, BRICK = range(4)  # channels
NUM_STATES = 4000
NUM_BRICKS = 30
FULL = np.isin(np.arange(100) // 10, (1, 2, 3))  # the board with all bricks


def number(x: np.ndarray, y: np.ndarray, heading: np.ndarray, paddle: np.ndarray) -> np.ndarray:
    """Return the number of a state."""
    return ((10 * y + x) * 4 + heading) * 10 + paddle


class Tables(NamedTuple):
    """What follows from a state, by its number."""

    steered: np.ndarray
    """[6 * 4000]: the state after the paddle has moved by an action."""
    ahead: np.ndarray
    """[4000]: the cell 10 * y + x that the ball is about to enter."""
    lost: np.ndarray
    """[4000] bool: the ball passes the paddle."""
    after: np.ndarray
    """[2 * 4000]: the state after the ball has moved; the second half if it breaks a brick."""


def tables() -> Tables:
    """Work out the rules for all states."""
    y, x, heading, paddle = np.indices((10, 10, 4, 10))
    moved = walks(0, 0).reshape(6, 100)[:, :10][:, paddle]
    beyond, new_y = x + 1 - 2 * (heading & 1), y + 1 - (heading & 2)
    new_x = np.clip(beyond, 0, 9)
    wall, top, bottom = beyond != new_x, new_y < 0, new_y == 9
    new_y = np.clip(new_y, 0, 9)  # 10 is reached only by games that are over
    centre = bottom & (x == paddle)  # above the paddle before it falls
    corner = bottom & (new_x == paddle)
    ends = []
    for broken in (False, True):
        back = broken | centre | corner  # the ball keeps its row
        turned = heading ^ (wall | corner) ^ 2 * (top | back)
        ends.append(number(new_x, np.where(back, y, new_y), turned, paddle).ravel())
    return Tables(
        number(x, y, heading, moved).ravel(),
        (10 * new_y + new_x).ravel(),
        (bottom & ~centre & ~corner).ravel(),
        np.concatenate(ends),
    )


class Breakout(Game):
    """E games of Breakout."""

    CHANNELS = 4
    STATE = ("state", "trail", "inside", "bricks", "left")
    STEERED, AHEAD, LOST, AFTER = tables()
    CELL = np.arange(NUM_STATES) // 40  # of the ball
    BALL_AT, TRAIL_AT = 4 * CELL + BALL, 4 * CELL + TRAIL
    PADDLE_AT = 4 * (90 + np.arange(NUM_STATES) % 10) + PADDLE
    START = number(  # the ball starts at the left or the right wall
        np.array([0, 9]), np.array([3, 3]), np.array([0, 1]), np.array([4, 4])
    )

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.state = np.zeros(num_envs, np.int64)
        self.trail = np.zeros(num_envs, np.int64)  # its place on the screen
        self.inside = np.zeros(num_envs, bool)  # the ball is in a brick
        self.bricks = np.zeros((num_envs, 100), bool)
        self.left = np.zeros(num_envs, np.int64)  # number of bricks
        self._board = np.arange(num_envs) * 100

    def reset(self, envs: np.ndarray) -> None:
        start = self.START[[self.streams.below(env, 2) for env in envs.tolist()]]
        self.state[envs], self.trail[envs] = start, self.TRAIL_AT[start]
        self.inside[envs], self.bricks[envs], self.left[envs] = False, FULL, NUM_BRICKS

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state, bricks = self.STEERED[NUM_STATES * action + self.state], self.bricks.reshape(-1)
        ahead = self.AHEAD[state]
        cell = self._board + ahead
        brick = bricks[cell]
        broken = brick > self.inside
        if np.count_nonzero(broken):
            bricks[cell[broken]] = False
            self.left -= broken
        if np.count_nonzero(self.left) < self.num_envs:
            empty = (self.left == 0) & (ahead >= 90)
            self.bricks[empty], self.left[empty] = FULL, NUM_BRICKS
        self.trail, self.inside = self.TRAIL_AT[state], brick
        self.state = self.AFTER[state + NUM_STATES * broken]
        return broken.astype(np.float32), self.LOST[state]

    def draw(self) -> None:
        first, cells = self._first, self._cells
        cells.fill(False)
        self.obs[:, 1:4, :, BRICK] = self.bricks.reshape(-1, 10, 10)[:, 1:4]
        cells[first + self.BALL_AT[self.state]] = True
        cells[first + self.trail] = True
        cells[first + self.PADDLE_AT[self.state]] = True
