"""Freeway: cross eight lanes with one car in each. Cars get new speeds whenever the top is reached.

A car is the number 2 * column + moves_right, and the steps it waits between two moves.
"""

from __future__ import annotations

import numpy as np
from sfactory_envs.minatar_rules.game import DOWN, UP, Game
from sfactory_envs.minatar_rules.random_streams import RandomStreams

CHICKEN, CAR, SPEED = 0, 1, 1  # channels; a car that waits n steps leaves its trail in SPEED + n
LANES = 8
PLAYER_SPEED = 3  # steps from one move of the player to the next
TIME_LIMIT = 2500
CARS = np.arange(20)
COLUMN, DIRECTION = CARS // 2, 2 * (CARS % 2) - 1


class Freeway(Game):
    """E games of Freeway."""

    CHANNELS = 7
    STATE = ("y", "cars", "waits", "timers", "rest", "steps_left")
    STEP = np.array([(action == DOWN) - (action == UP) for action in range(6)])
    MOVED = (CARS + 2 * DIRECTION) % 20
    HITS = COLUMN == 4
    CAR_AT = 7 * COLUMN + CAR
    TRAIL_AT = 7 * ((COLUMN - DIRECTION) % 10) + SPEED

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.y, self.rest, self.steps_left = np.zeros((3, num_envs), np.int64)  # rest: steps until the player may move
        self.cars, self.waits, self.timers = np.zeros((3, num_envs, LANES), np.int64)
        self._lanes = np.arange(num_envs) * LANES
        self._lane_at = self._first[:, None] + 70 * np.arange(1, LANES + 1)
        self._player_at = self._first + 7 * 4 + CHICKEN

    def reset(self, envs: np.ndarray) -> None:
        self.cars[envs] = 0
        self._new_speeds(envs)
        self.y[envs], self.rest[envs], self.steps_left[envs] = 9, PLAYER_SPEED, TIME_LIMIT

    def _new_speeds(self, envs: np.ndarray) -> None:
        """Draw the speed and the direction of every car, which stays where it is."""
        self.waits[envs] = self.timers[envs] = 1 + self.streams.below_often(envs, 5, LANES)
        right = self.streams.uniforms(envs, LANES).T > 0.5
        self.cars[envs] = self.cars[envs] // 2 * 2 + right

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step = np.where(self.rest, 0, self.STEP[action])
        y = np.minimum(self.y + step, 9)
        self.rest = np.maximum(np.where(step, PLAYER_SPEED, self.rest) - 1, 0)
        crossed = playing > y
        winners = crossed.nonzero()[0]
        if winners.size:
            self._new_speeds(winners)
            y[winners] = 9
        lane = self._lanes + np.minimum(y, LANES) - 1  # row 9 has no car; nothing happens to a player hit there
        hit = self.HITS[self.cars.take(lane)]
        self._drive()
        hit |= self.HITS[self.cars.take(lane)]
        self.y = np.where(hit, 9, y)
        self.steps_left -= 1
        return crossed.astype(np.float32), self.steps_left < 0

    def _drive(self) -> None:
        """Move the cars whose timer is 0. They leave at one side and come back at the other."""
        cars, timers = self.cars.reshape(-1), self.timers.reshape(-1)
        moving = (timers == 0).nonzero()[0]
        timers -= 1
        cars[moving] = self.MOVED[cars[moving]]
        timers[moving] = self.waits.take(moving)

    def draw(self) -> None:
        cells, lanes = self._cells, self._lane_at
        cells.fill(False)
        cells[self._player_at + 70 * self.y] = True
        cells[lanes + self.CAR_AT.take(self.cars)] = True
        cells[lanes + self.TRAIL_AT.take(self.cars) + self.waits] = True
