"""Asterix: walk in the rows 1 to 8, collect gold, avoid enemies. Each of these rows holds one of either at most.

Every 102 steps the difficulty rises: they appear more often and every second time they also move more often.

What is in a row is one number, 4 * column + 2 * moves_right + is_gold, or 0. Columns are counted from 1: 0 and 11 are
outside of the screen, which is drawn with one more column on either side.
"""

from __future__ import annotations

import numpy as np
from sfactory_envs.minatar_rules.game import Game, walks
from sfactory_envs.minatar_rules.random_streams import RandomStreams

PLAYER, ENEMY, TRAIL, GOLD = range(4)  # channels
SLOWEST_SPAWN, SLOWEST_MOVE = 10, 5  # steps from one to the next
RAMP_INTERVAL = 102
KINDS = np.arange(48)  # what can be in a row
COLUMN, RIGHT, IS_GOLD = KINDS // 4, KINDS // 2 % 2, KINDS % 2 == 1
FROM_LEFT, FROM_RIGHT = 4 * 1 + 2, 4 * 10
PRESENT = (COLUMN > 0) & (COLUMN < 11)


class Asterix(Game):
    """E games of Asterix."""

    CHANNELS = 4
    STATE = ("player", "rows", "spawn_time", "move_time", "ramp_time", "spawn_interval", "move_interval", "ramps")
    WALKED = walks(1, 8)
    PLAYER_COLUMN, PLAYER_ROW = np.arange(100) % 10 + 1, np.arange(100) // 10 - 1
    PLAYER_AT = 48 * (PLAYER_ROW + 1) + 4 * PLAYER_COLUMN + PLAYER
    MOVED = np.where(PRESENT & np.isin(COLUMN + 2 * RIGHT - 1, range(1, 11)), KINDS + 8 * RIGHT - 4, 0)
    AT = np.where(PRESENT, 4 * COLUMN + np.where(IS_GOLD, GOLD, ENEMY), 0)
    TRAIL_AT = np.where(PRESENT, 4 * (COLUMN + 1 - 2 * RIGHT) + TRAIL, 0)

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.player = np.zeros(num_envs, np.int64)  # cell 10 * y + x
        self.rows = np.zeros((num_envs, 8), np.int64)
        self.spawn_time, self.move_time, self.ramp_time, self.spawn_interval, self.move_interval, self.ramps = (
            np.zeros(num_envs, np.int64) for _ in range(6)
        )
        self._first_row = np.arange(num_envs) * 8
        self._wide = np.zeros((num_envs, 10, 12, 4), bool)
        self._wide_cells = self._wide.reshape(-1)
        self._wide_first = np.arange(num_envs) * 480
        self._wide_rows = self._wide_first[:, None] + 48 * np.arange(1, 9)

    def reset(self, envs: np.ndarray) -> None:
        self.player[envs], self.rows[envs], self.ramps[envs] = 55, 0, 0
        self.spawn_interval[envs], self.move_interval[envs] = SLOWEST_SPAWN, SLOWEST_MOVE
        self.spawn_time[envs], self.move_time[envs] = self.clock + 1 + SLOWEST_SPAWN, self.clock + 1 + SLOWEST_MOVE
        self.ramp_time[envs] = self.clock + RAMP_INTERVAL

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock += 1
        reward, terminal = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        for env in (playing & (self.spawn_time == self.clock)).nonzero()[0].tolist():
            self._spawn(env)
        self.player = self.WALKED[100 * action + self.player]
        self._touch(reward, terminal)
        moving = (self.move_time == self.clock).nonzero()[0]
        if moving.size:
            self.move_time[moving] = self.clock + self.move_interval[moving]
            self.rows[moving] = self.MOVED.take(self.rows[moving])
            self._touch(reward, terminal)  # finds nothing new where nothing moved
        if self.ramping:
            rising = (self.ramp_time == self.clock).nonzero()[0]
            if rising.size:
                self._ramp(rising)
        return reward, terminal

    def _spawn(self, env: int) -> None:
        """Put gold or an enemy into an empty row, if there is one."""
        self.spawn_time[env] = self.clock + self.spawn_interval[env]
        right, gold = self.streams.uniform(env) < 1 / 2, self.streams.uniform(env) < 1 / 3
        empty = (self.rows[env] == 0).nonzero()[0].tolist()
        if empty:
            row = empty[self.streams.below(env, len(empty))]
            self.rows[env, row] = (FROM_LEFT if right else FROM_RIGHT) + gold

    def _touch(self, reward: np.ndarray, terminal: np.ndarray) -> None:
        """Look at the player's row: gold is collected there, an enemy is the end."""
        rows = self.rows.reshape(-1)
        row = self._first_row + self.PLAYER_ROW[self.player]
        met = (COLUMN[rows[row]] == self.PLAYER_COLUMN[self.player]).nonzero()[0]
        if met.size:
            gold = IS_GOLD[rows[row[met]]]
            collected = met[gold]
            reward[collected] += 1
            rows[row[collected]] = 0
            terminal[met[~gold]] = True

    def _ramp(self, envs: np.ndarray) -> None:
        self.ramp_time[envs] = self.clock + RAMP_INTERVAL
        self.spawn_interval[envs] = np.maximum(self.spawn_interval[envs] - 1, 1)
        self.move_interval[envs] = np.maximum(self.move_interval[envs] - self.ramps[envs] % 2, 1)
        self.ramps[envs] += 1

    def draw(self) -> None:
        cells, rows = self._wide_cells, self._wide_rows
        cells.fill(False)
        cells[self._wide_first + self.PLAYER_AT[self.player]] = True
        cells[rows + self.AT.take(self.rows)] = True
        cells[rows + self.TRAIL_AT.take(self.rows)] = True
        self.obs[...] = self._wide[:, :, 1:11]
