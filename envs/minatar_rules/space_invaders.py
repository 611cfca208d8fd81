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
COUNT = np.array([bin(row).count("1") for row in range(1024)])
LEFT_WALL, RIGHT_WALL = 1, 1 << 9


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
    STATE = ("x", "aliens", "direction", "interval", "move_timer", "shot_timer", "rest", "bullet_x", "bullet_y",
             "alien_bullet_x", "alien_bullet_y")  # fmt: skip
    SCREENS, NEAREST = _screens(), _nearest()
    WALKED = walks(0, 0)

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.x, self.direction, self.interval = np.zeros((3, num_envs), np.int64)
        self.move_timer, self.shot_timer, self.rest = np.zeros((3, num_envs), np.int64)  # rest: steps until it can fire
        self.aliens = np.zeros((num_envs, 10), np.int64)
        self.bullet_x, self.bullet_y = np.zeros((2, num_envs, 2), np.int64)  # the newer one is last; y < 0: none
        self.alien_bullet_x, self.alien_bullet_y = np.zeros((2, num_envs), np.int64)  # y > 9: none
        self._rows = np.arange(num_envs) * 10

    def reset(self, envs: np.ndarray) -> None:
        self.x[envs], self.aliens[envs], self.direction[envs] = 5, WAVE, -1
        self.interval[envs] = self.move_timer[envs] = SLOWEST
        self.shot_timer[envs], self.rest[envs] = SHOT_INTERVAL, 0
        self.bullet_y[envs], self.alien_bullet_y[envs] = -1, 10

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        firing = ((action == FIRE) & (self.rest == 0)).nonzero()[0]
        if firing.size:
            self.bullet_x[firing, 0], self.bullet_y[firing, 0] = self.bullet_x[firing, 1], self.bullet_y[firing, 1]
            self.bullet_x[firing, 1], self.bullet_y[firing, 1] = self.x[firing], 9
            self.rest[firing] = COOL_DOWN
        x = self.x = self.WALKED[100 * action + self.x]
        self.bullet_y -= 1
        self.alien_bullet_y += 1
        terminal = (self.alien_bullet_y == 9) & (self.alien_bullet_x == x)
        bottom = self._rows + 9
        terminal |= (self.aliens.take(bottom) >> x) & 1 == 1
        moving = (self.move_timer == 0).nonzero()[0]
        if moving.size:
            terminal[self._move(moving)] = True
            terminal |= (self.aliens.take(bottom) >> x) & 1 == 1
        shooting = (self.shot_timer == 0).nonzero()[0]
        if shooting.size:
            self._shoot(shooting)
        reward = self._hit()
        self.rest = np.maximum(self.rest - 1, 0)
        self.move_timer -= 1
        self.shot_timer -= 1
        return reward, terminal

    def _move(self, envs: np.ndarray) -> np.ndarray:
        """Move the aliens of the games `envs`; return those games where they turned in the bottom row."""
        aliens, direction = self.aliens[envs], self.direction[envs]
        self.move_timer[envs] = np.minimum(COUNT[aliens].sum(axis=1), self.interval[envs])
        columns = np.bitwise_or.reduce(aliens, axis=1)
        turning = columns & np.where(direction < 0, LEFT_WALL, RIGHT_WALL) != 0
        sideways = np.where(direction[:, None] < 0, aliens >> 1, aliens << 1)
        down = aliens[:, [9, *range(9)]]
        self.aliens[envs] = np.where(turning[:, None], down, sideways)
        self.direction[envs] = np.where(turning, -direction, direction)
        return envs[turning & (aliens[:, 9] > 0)]

    def _shoot(self, envs: np.ndarray) -> None:
        """The lowest alien of the column that is nearest to the player fires."""
        self.shot_timer[envs] = SHOT_INTERVAL
        aliens = self.aliens[envs]
        column = self.NEAREST[self.x[envs], np.bitwise_or.reduce(aliens, axis=1)]
        occupied = (aliens >> column[:, None]) & 1
        self.alien_bullet_x[envs] = column
        self.alien_bullet_y[envs] = 9 - occupied[:, ::-1].argmax(axis=1)

    def _hit(self) -> np.ndarray:
        """Remove the aliens that bullets have reached, and the bullets; return the number of aliens, [E]."""
        aliens, y = self.aliens.reshape(-1), self.bullet_y
        row = self._rows[:, None] + np.maximum(y, 0)
        hit = ((aliens[row] >> self.bullet_x) & 1) > (y < 0)
        if not np.count_nonzero(hit):
            return np.zeros(self.num_envs, np.float32)
        for bullet in range(2):
            envs = hit[:, bullet].nonzero()[0]
            aliens[row[envs, bullet]] ^= 1 << self.bullet_x[envs, bullet]
            y[envs, bullet] = -1
        cleared = (np.count_nonzero(self.aliens, axis=1) == 0).nonzero()[0]
        if cleared.size:
            self.aliens[cleared] = WAVE
            if self.ramping:
                self.interval[cleared] = np.maximum(self.interval[cleared] - 1, FASTEST)
        return np.count_nonzero(hit, axis=1).astype(np.float32)

    def draw(self) -> None:
        first, cells = self._first, self._cells
        rows = self.aliens + 512 * (1 + self.direction[:, None])
        self.SCREENS.take(rows, axis=0, out=self.obs, mode="clip")  # "clip" writes to `out` without a copy
        cells[first + 6 * (90 + self.x) + CANNON] = True
        flying = self.bullet_y >= 0
        bullets = first[:, None] + 6 * (10 * self.bullet_y + self.bullet_x) + BULLET
        cells[bullets[flying]] = True
        falling = self.alien_bullet_y <= 9
        alien_bullets = first + 6 * (10 * self.alien_bullet_y + self.alien_bullet_x) + ALIEN_BULLET
        cells[alien_bullets[falling]] = True
