"""Asterix: walk in the rows 1 to 8, collect gold, avoid enemies. Each of these rows holds one of either at most.

Every 102 steps the difficulty rises: they appear more often and every second time they also move more often.
"""

from __future__ import annotations

import numpy as np
from sfactory_envs.minatar_rules.game import STEP_X, STEP_Y, Game
from sfactory_envs.minatar_rules.random_streams import RandomStreams

PLAYER, ENEMY, TRAIL, GOLD = range(4)  # channels
SPAWN, MOVE, RAMP = range(3)  # rows of `timers`
SLOWEST = np.array([10, 5])  # steps between two of them, steps between two moves
RAMP_INTERVAL = 100
NOWHERE = 0
"""Column of an empty row. Columns are counted from 1: 0 and 11 are outside of the screen."""


class Asterix(Game):
    """E games of Asterix."""

    CHANNELS = 4
    STATE = ("x", "y", "column", "direction", "gold", "timers", "speeds", "ramps")

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.x, self.y = np.zeros((2, num_envs), np.int64)  # of the player; columns from 1
        self.column, self.direction = np.zeros((2, num_envs, 8), np.int64)  # of what is in each row; 0: nothing
        self.gold = np.zeros((num_envs, 8), bool)
        self.timers = np.zeros((3, num_envs), np.int64)
        self.speeds = np.zeros((2, num_envs), np.int64)  # what the timers of SPAWN and MOVE start at
        self.ramps = np.zeros(num_envs, np.int64)
        self._rows = np.arange(num_envs) * 8
        self._wide = np.zeros((num_envs, 10, 12, 4), bool)  # the screen with one more column on either side
        self._wide_cells = self._wide.reshape(-1)
        self._wide_first = np.arange(num_envs) * 480
        self._wide_rows = self._wide_first[:, None] + 48 * np.arange(1, 9)

    def reset(self, envs: np.ndarray) -> None:
        self.x[envs], self.y[envs] = 6, 5
        self.column[envs], self.direction[envs] = NOWHERE, 0
        self.timers[:2, envs] = self.speeds[:, envs] = SLOWEST[:, None]
        self.timers[RAMP, envs] = RAMP_INTERVAL
        self.ramps[envs] = 0

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        timers = self.timers
        spawning = (playing & (timers[SPAWN] == 0)).nonzero()[0]
        if spawning.size:
            self._spawn(spawning)
            timers[SPAWN, spawning] = self.speeds[SPAWN, spawning]
        self.x = np.minimum(np.maximum(self.x + STEP_X[action], 1), 10)
        self.y = np.minimum(np.maximum(self.y + STEP_Y[action], 1), 8)
        collected, killed = self._touch()
        moving = (timers[MOVE] == 0).nonzero()[0]
        if moving.size:
            timers[MOVE, moving] = self.speeds[MOVE, moving]
            self._move(moving)
            more, too = self._touch()  # finds nothing new where nothing moved
            collected, killed = collected + more.astype(np.int64), killed | too
        timers -= 1
        if self.ramping:
            rising = (timers[RAMP] < -1).nonzero()[0]
            if rising.size:
                self._ramp(rising)
        return collected, killed

    def _spawn(self, envs: np.ndarray) -> None:
        """Put gold or an enemy into an empty row, if there is one."""
        right, gold = self.streams.uniform(envs) < 1 / 2, self.streams.uniform(envs) < 1 / 3
        empty = self.direction[envs] == 0
        room = np.count_nonzero(empty, axis=1)
        if not room.all():
            some = room.nonzero()[0]
            envs, right, gold, empty, room = envs[some], right[some], gold[some], empty[some], room[some]
        choice = self.streams.below(envs, room)
        row = (empty.cumsum(axis=1) > choice[:, None]).argmax(axis=1)
        self.column[envs, row] = np.where(right, 1, 10)
        self.direction[envs, row] = np.where(right, 1, -1)
        self.gold[envs, row] = gold

    def _touch(self) -> tuple[np.ndarray, np.ndarray]:
        """Look at the player's row: gold that is collected there, an enemy that is met; both [E] bool."""
        row = self._rows + self.y - 1
        met, gold = self.column.take(row) == self.x, self.gold.take(row)
        collected = met & gold
        taken = row[collected]
        self.column.reshape(-1)[taken], self.direction.reshape(-1)[taken] = NOWHERE, 0
        return collected, met & ~gold

    def _move(self, envs: np.ndarray) -> None:
        column, direction = self.column[envs], self.direction[envs]
        column += direction
        gone = (column < 1) | (column > 10)
        column[gone], direction[gone] = NOWHERE, 0
        self.column[envs], self.direction[envs] = column, direction

    def _ramp(self, envs: np.ndarray) -> None:
        self.speeds[SPAWN, envs] = np.maximum(self.speeds[SPAWN, envs] - 1, 1)
        self.speeds[MOVE, envs] = np.maximum(self.speeds[MOVE, envs] - self.ramps[envs] % 2, 1)
        self.ramps[envs] += 1
        self.timers[RAMP, envs] = RAMP_INTERVAL

    def draw(self) -> None:
        cells, place = self._wide_cells, self._wide_rows + 4 * self.column
        cells.fill(False)
        cells[self._wide_first + 48 * self.y + 4 * self.x + PLAYER] = True
        cells[place + np.where(self.gold, GOLD, ENEMY)] = True
        cells[place - 4 * self.direction + TRAIL] = True
        self.obs[...] = self._wide[:, :, 1:11]
