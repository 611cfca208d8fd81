"""Space Invaders: aliens that move sideways, turn and come down at a wall, and get faster as they become fewer.

A row of aliens is a number whose bit x is set where column x has one. The player can fire every 5 steps and a bullet
is on the screen for 9, so there are two at most; the aliens' bullet leaves before they fire again.
"""

from __future__ import annotations

import numpy as np
from sfactory_envs.minatar_rules.game import FIRE, Game, walks
from sfactory_envs.minatar_rules.random_streams import RandomStreams

CANNON, ALIEN, ALIEN_LEFT, ALIEN_RIGHT, BULLET, ALIEN_BULLET = range(6)  # channels
COOL_DOWN = 5
SHOT_INTERVAL = 10
SLOWEST, FASTEST = 12, 6  # steps from one move of a full wave to the next
WAVE = np.array([0b0011111100] * 4 + [0] * 6)  # rows
WAVE_SIZE = 24
WALL = np.array([1, 1 << 9])  # heading -> the column where aliens turn
ROWS_BELOW = np.array([9, *range(9)])  # row -> the one that comes down to it; from the bottom row to the top
NONE = 100
CELLS = np.arange(NONE + 1)  # 10 * y + x, and NONE for a bullet that is not there


def _screens() -> np.ndarray:
    """Row of aliens + 1024 if they move right -> what the screen shows of them, [2048, 10, 6] bool."""
    bits = (np.arange(1024)[:, None] >> np.arange(10)) & 1 == 1
    screens = np.zeros((2, 1024, 10, 6), bool)
    screens[..., ALIEN] = screens[0, ..., ALIEN_LEFT] = screens[1, ..., ALIEN_RIGHT] = bits
    return screens.reshape(2048, 10, 6)


def _nearest() -> np.ndarray:
    """Column of the player, columns with aliens as bits -> the nearest of these, the left one of two; [10, 1024]."""
    distance = np.abs(np.arange(10)[:, None] - np.arange(10))
    bits = (np.arange(1024)[:, None] >> np.arange(10)) & 1 == 1
    return np.where(bits, distance[:, None], 10).argmin(axis=2)


class SpaceInvaders(Game):
    """E games of Space Invaders."""

    CHANNELS = 6
    STATE = ("x", "aliens", "left", "heading", "interval", "move_time", "shot_time", "reload_time", "newer", "older",
             "alien_bullet")  # fmt: skip
    SCREENS, NEAREST = _screens(), _nearest()
    WALKED = walks(0, 0)
    UP = np.where((CELLS < 10) | (CELLS == NONE), NONE, CELLS - 10)
    DOWN = np.minimum(CELLS + 10, NONE)
    ROW, BIT = CELLS // 10 % 10, np.where(CELLS < NONE, 1 << CELLS % 10, 0)

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.x, self.left, self.heading, self.interval, self.move_time, self.shot_time, self.reload_time = (
            np.zeros(num_envs, np.int64) for _ in range(7)
        )  # left: number of aliens; heading: 0 to the left, 1 to the right
        self.newer, self.older, self.alien_bullet = (np.full(num_envs, NONE) for _ in range(3))  # cells of bullets
        self.aliens = np.zeros((num_envs, 10), np.int64)
        self._rows = np.arange(num_envs) * 10

    def reset(self, envs: np.ndarray) -> None:
        self.x[envs], self.aliens[envs], self.left[envs], self.heading[envs] = 5, WAVE, WAVE_SIZE, 0
        self.interval[envs], self.reload_time[envs] = SLOWEST, self.clock
        self.move_time[envs], self.shot_time[envs] = self.clock + 1 + SLOWEST, self.clock + 1 + SHOT_INTERVAL
        self.newer[envs] = self.older[envs] = self.alien_bullet[envs] = NONE

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock += 1
        firing = ((action == FIRE) & (self.reload_time <= self.clock)).nonzero()[0]
        if firing.size:
            self.older[firing], self.newer[firing] = self.newer[firing], 90 + self.x[firing]
            self.reload_time[firing] = self.clock + COOL_DOWN
        x = self.x = self.WALKED[100 * action + self.x]
        self.newer, self.older = self.UP[self.newer], self.UP[self.older]
        self.alien_bullet = self.DOWN[self.alien_bullet]
        bottom, bit = self._rows + 9, self.BIT[x]
        terminal = (self.alien_bullet == 90 + x) | (self.aliens.take(bottom) & bit != 0)
        moving = (self.move_time == self.clock).nonzero()[0]
        if moving.size:
            terminal[self._move(moving)] = True
            terminal |= self.aliens.take(bottom) & bit != 0
        shooting = (self.shot_time == self.clock).nonzero()[0]
        if shooting.size:
            self._shoot(shooting)
        reward = np.zeros(self.num_envs, np.float32)
        self._hit(self.newer, reward)
        self._hit(self.older, reward)
        if np.count_nonzero(self.left) < self.num_envs:
            self._new_wave((self.left == 0).nonzero()[0])
        return reward, terminal

    def _move(self, envs: np.ndarray) -> np.ndarray:
        """Move the aliens of the games `envs`; return those games where they turned in the bottom row."""
        self.move_time[envs] = self.clock + np.minimum(self.left[envs], self.interval[envs])
        aliens, heading = self.aliens[envs], self.heading[envs]
        turning = np.bitwise_or.reduce(aliens, axis=1) & WALL[heading] != 0
        right, left = heading > turning, (1 - heading) > turning
        moved = aliens << right[:, None] >> left[:, None]
        down = turning.nonzero()[0]
        if down.size:
            moved[down] = aliens[down][:, ROWS_BELOW]
            self.heading[envs[down]] ^= 1
        self.aliens[envs] = moved
        return envs[turning & (aliens[:, 9] > 0)]

    def _shoot(self, envs: np.ndarray) -> None:
        """The lowest alien of the column that is nearest to the player fires."""
        self.shot_time[envs] = self.clock + SHOT_INTERVAL
        aliens = self.aliens[envs]
        column = self.NEAREST[self.x[envs], np.bitwise_or.reduce(aliens, axis=1)]
        above = (aliens[:, ::-1] & self.BIT[column][:, None]).astype(bool).argmax(axis=1)
        self.alien_bullet[envs] = 10 * (9 - above) + column

    def _hit(self, bullet: np.ndarray, reward: np.ndarray) -> None:
        """Remove the aliens that `bullet` [E] has reached, and these bullets; count them in `reward`."""
        aliens, row, bit = self.aliens.reshape(-1), self._rows + self.ROW[bullet], self.BIT[bullet]
        hits = (aliens[row] & bit).nonzero()[0]
        if hits.size:
            aliens[row[hits]] ^= bit[hits]
            bullet[hits] = NONE
            self.left[hits] -= 1
            reward[hits] += 1

    def _new_wave(self, envs: np.ndarray) -> None:
        self.aliens[envs], self.left[envs] = WAVE, WAVE_SIZE
        if self.ramping:
            self.interval[envs] = np.maximum(self.interval[envs] - 1, FASTEST)

    def draw(self) -> None:
        first, cells = self._first, self._cells
        rows = self.aliens + (1024 * self.heading)[:, None]
        self.SCREENS.take(rows, axis=0, out=self.obs, mode="clip")  # "clip" writes to `out` without a copy
        cells[first + (6 * (90 + self.x) + CANNON)] = True
        for bullet, channel in ((self.newer, BULLET), (self.older, BULLET), (self.alien_bullet, ALIEN_BULLET)):
            envs = (bullet != NONE).nonzero()[0]
            cells[first[envs] + (6 * bullet[envs] + channel)] = True
