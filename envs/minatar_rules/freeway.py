"""Freeway: cross eight lanes with one car in each. Cars get new speeds whenever the top is reached.

A car is the number 2 * column + moves_right, and the steps it waits between two moves.
"""

from __future__ import annotations

import numpy as np
from sfactory_envs.minatar_rules.game import DOWN, UP, Game
from sfactory_envs.minatar_rules.random_streams import RandomStreams

CHICKEN, CAR, SPEED = 0, 1, 1  # channels; a car that waits n steps leaves its trail in SPEED + n
LANES = 8
WALK_INTERVAL = 3  # steps from one move of the player to the next
TIME_LIMIT = 2500
CARS = np.arange(20)
COLUMN, DIRECTION = CARS // 2, 2 * (CARS % 2) - 1


class Freeway(Game):
    """E games of Freeway."""

    CHANNELS = 7
    STATE = ("y", "cars", "waits", "move_time", "walk_time", "end_time")
    STEP = np.array([(action == DOWN) - (action == UP) for action in range(6)])
    MOVED = (CARS + 2 * DIRECTION) % 20
    HITS = COLUMN == 4
    CAR_AT = 7 * COLUMN + CAR
    TRAIL_AT = 7 * ((COLUMN - DIRECTION) % 10) + SPEED

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.y, self.walk_time, self.end_time = (np.zeros(num_envs, np.int64) for _ in range(3))
        self.cars, self.waits, self.move_time = (np.zeros((num_envs, LANES), np.int64) for _ in range(3))
        self._lanes = np.arange(num_envs) * LANES
        self._lane_at = self._first[:, None] + 70 * np.arange(1, LANES + 1)
        self._player_at = self._first + 7 * 4 + CHICKEN

    def reset(self, envs: np.ndarray) -> None:
        begin = self.clock + 1
        self.cars[envs] = 0
        for env in envs.tolist():
            self._new_speeds(env, begin)
        self.y[envs], self.walk_time[envs], self.end_time[envs] = 9, begin + WALK_INTERVAL, begin + TIME_LIMIT

    def _new_speeds(self, env: int, begin: int) -> None:
        """Draw the speed and the direction of every car, which waits where it is from the step `begin` on."""
        draws = self.streams
        waits = self.waits[env] = [1 + draws.below(env, 5) for _ in range(LANES)]
        self.move_time[env] = begin + np.array(waits)
        self.cars[env] = self.cars[env] // 2 * 2 + [draws.uniform(env) > 0.5 for _ in range(LANES)]

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock += 1
        step = self.STEP[action] * (self.walk_time <= self.clock)
        y = np.minimum(self.y + step, 9)
        np.copyto(self.walk_time, self.clock + WALK_INTERVAL, where=step != 0)
        crossed = playing > y
        winners = crossed.nonzero()[0].tolist()
        for env in winners:
            self._new_speeds(env, self.clock)
            y[env] = 9
        lane = self._lanes + np.minimum(y, LANES) - 1  # row 9 has no car; nothing happens to a player hit there
        hit = self.HITS[self.cars.take(lane)]
        self._drive()
        hit |= self.HITS[self.cars.take(lane)]
        self.y = np.where(hit, 9, y)
        return crossed.astype(np.float32), self.end_time <= self.clock

    def _drive(self) -> None:
        """Move the cars whose time has come. They leave at one side and come back at the other."""
        cars, move_time = self.cars.reshape(-1), self.move_time.reshape(-1)
        moving = (move_time == self.clock).nonzero()[0]
        cars[moving] = self.MOVED[cars[moving]]
        move_time[moving] = self.clock + 1 + self.waits.take(moving)

    def draw(self) -> None:
        cells, lanes = self._cells, self._lane_at
        cells.fill(False)
        cells[self._player_at + 70 * self.y] = True
        cells[lanes + self.CAR_AT.take(self.cars)] = True
        cells[lanes + self.TRAIL_AT.take(self.cars) + self.waits] = True
