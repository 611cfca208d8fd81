"""Freeway: cross eight lanes with one car in each. Cars get new speeds whenever the top is reached."""

from __future__ import annotations

import numpy as np
from sfactory_envs.minatar_rules.game import STEP_Y, Game
from sfactory_envs.minatar_rules.random_streams import RandomStreams

CHICKEN, CAR, SPEED = 0, 1, 1  # channels; a car that waits n steps leaves its trail in SPEED + n
LANES = 8
PLAYER_SPEED = 3  # steps from one move of the player to the next
TIME_LIMIT = 2500


class Freeway(Game):
    """E games of Freeway."""

    CHANNELS = 7
    STATE = ("y", "column", "direction", "wait", "timer", "rest", "steps_left")

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.y, self.rest, self.steps_left = np.zeros((3, num_envs), np.int64)  # rest: steps until the player may move
        self.column, self.direction, self.wait, self.timer = np.zeros((4, num_envs, LANES), np.int64)
        self._lanes = np.arange(num_envs) * LANES
        self._lane_cells = self._first[:, None] + 70 * np.arange(1, LANES + 1)

    def reset(self, envs: np.ndarray) -> None:
        self._new_speeds(envs)
        self.column[envs], self.y[envs] = 0, 9
        self.rest[envs], self.steps_left[envs] = PLAYER_SPEED, TIME_LIMIT

    def _new_speeds(self, envs: np.ndarray) -> None:
        for lane in range(LANES):
            self.wait[envs, lane] = 1 + self.streams.below(envs, np.full(len(envs), 5))
        for lane in range(LANES):
            self.direction[envs, lane] = np.sign(self.streams.uniform(envs) - 0.5)
        self.timer[envs] = self.wait[envs]

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step = STEP_Y[action] * (self.rest == 0)
        y = np.minimum(self.y + step, 9)
        self.rest = np.where(step, PLAYER_SPEED, self.rest)
        crossed = playing & (y == 0)
        winners = crossed.nonzero()[0]
        if winners.size:
            self._new_speeds(winners)
        y[y == 0] = 9
        lane = self._lanes + np.minimum(y, LANES) - 1  # row 9 has no car; its player cannot be hit
        before = self.column.take(lane) == 4
        self._drive()
        hit = before | (self.column.take(lane) == 4)
        self.y = np.where(hit, 9, y)
        self.rest = np.maximum(self.rest - 1, 0)
        self.steps_left -= 1
        return crossed, self.steps_left < 0

    def _drive(self) -> None:
        """Move the cars whose timer is 0. They leave at one side and come back at the other."""
        moving = (self.timer == 0).reshape(-1).nonzero()[0]
        self.timer -= 1
        column, direction = self.column.reshape(-1), self.direction.reshape(-1)
        column[moving] = (column[moving] + direction[moving]) % 10
        self.timer.reshape(-1)[moving] = self.wait.reshape(-1)[moving]

    def draw(self) -> None:
        cells, lanes = self._cells, self._lane_cells
        cells.fill(False)
        cells[self._first + 70 * self.y + 28 + CHICKEN] = True
        cells[lanes + 7 * self.column + CAR] = True
        cells[lanes + 7 * ((self.column - self.direction) % 10) + SPEED + self.wait] = True
