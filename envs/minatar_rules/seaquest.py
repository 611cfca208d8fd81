"""Seaquest: a submarine that shoots fish and submarines, picks up divers and must surface for oxygen with one aboard.

Fish, submarines and divers of a game share one array of slots. Where several of them meet in one cell, the order in
which they appeared decides, as in the package: the player's newer bullet strikes first, and strikes the oldest fish,
then the oldest submarine; of what moves into a bullet, the newest submarine is struck, then the newest fish. The player
can fire every 5 steps and a bullet is gone after 10, so there are two at most.

Cells are numbered 12 * y + x + 1 on a screen with one more column on either side, so that what leaves the screen, and
the trail of what enters it, have a cell too.
"""

from __future__ import annotations

import numpy as np
from sfactory_envs.minatar_rules.game import FIRE, LEFT, RIGHT, STEP_X, STEP_Y, Game
from sfactory_envs.minatar_rules.random_streams import RandomStreams

SUB_FRONT, SUB_BACK, BULLET, TRAIL, ENEMY_BULLET, FISH, SUB, OXYGEN, DIVERS, DIVER = range(10)  # channels
EMPTY = TRAIL
"""Kind of an empty slot. Kinds are channels; an empty slot is drawn outside of the screen."""
NOWHERE, NO_BULLET = 0, 11  # cells of an empty slot and of a bullet that is not there: outside of the screen
NEVER = -1  # a timer that was negative never becomes 0 again
OUTSIDE = np.isin(np.arange(120) % 12, (0, 11))
FULL_OXYGEN, MOST_DIVERS = 200, 6
SLOWEST_SPAWN, DIVER_SPAWN = 20, 30  # steps from one to the next
SLOWEST_MOVE, FASTEST_MOVE, DIVER_MOVE = 5, 2, 5
COOL_DOWN, SHOT_INTERVAL = 5, 10
SUBS_LAST = 1 << 40
"""Added to the order of submarines: they come after all fish."""
BITS = (np.arange(1024)[:, None] >> np.arange(10)) & 1 == 1
OXYGEN_GAUGE = np.arange(10) < np.arange(11)[:, None]  # active cells -> the row
DIVER_GAUGE = (np.arange(10) >= 9 - np.arange(7)[:, None]) & (np.arange(10) < 9)
SLOTS = ("cell", "direction", "kind", "timer", "shot_timer", "order")
EMPTY_SLOT = (NOWHERE, 0, EMPTY, NEVER, NEVER, 0)


class Seaquest(Game):
    """E games of Seaquest."""

    CHANNELS = 10
    STATE = (
        *SLOTS, "x", "y", "right", "oxygen", "divers", "surfaced", "rest", "spawn_timer", "diver_timer", "spawn_speed",
        "move_speed", "ramps", "bullet_cell", "bullet_direction", "bullets_left", "bullets_right", "clock",
    )  # fmt: skip

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.cell, self.direction, self.kind, self.timer, self.shot_timer, self.order = (
            np.full((num_envs, 8), value) for value in EMPTY_SLOT
        )
        self.x, self.y, self.oxygen, self.divers = np.zeros((4, num_envs), np.int64)
        self.right, self.surfaced = np.zeros((2, num_envs), bool)
        self.rest, self.spawn_timer, self.diver_timer = np.zeros((3, num_envs), np.int64)  # rest: until it can fire
        self.spawn_speed, self.move_speed, self.ramps = np.zeros((3, num_envs), np.int64)
        self.bullet_cell, self.bullet_direction = np.zeros((2, num_envs, 2), np.int64)  # the newer one is last
        self.bullets_left, self.bullets_right = np.zeros((2, num_envs, 10), np.int64)  # enemies'; bit x of row y
        self.clock = np.zeros(1, np.int64)  # steps of the group, for the order of appearance
        self._rows = np.arange(num_envs) * 10
        self._wide = np.zeros((num_envs, 10, 12, self.CHANNELS), bool)
        self._wide_cells = self._wide.reshape(-1)
        self._wide_first = np.arange(num_envs) * 1200

    def reset(self, envs: np.ndarray) -> None:
        for name, value in zip(SLOTS, EMPTY_SLOT, strict=True):
            getattr(self, name)[envs] = value
        self.x[envs], self.y[envs], self.right[envs] = 5, 0, False
        self.oxygen[envs], self.divers[envs], self.surfaced[envs] = FULL_OXYGEN, 0, True
        self.rest[envs], self.ramps[envs] = 0, 0
        self.spawn_timer[envs] = self.spawn_speed[envs] = SLOWEST_SPAWN
        self.diver_timer[envs], self.move_speed[envs] = DIVER_SPAWN, SLOWEST_MOVE
        self.bullet_cell[envs], self.bullet_direction[envs] = NO_BULLET, 0
        self.bullets_left[envs] = self.bullets_right[envs] = 0

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock += 1
        self._spawn(playing)
        self._steer(action)
        reward = self._move_bullets()
        terminal = self._move_others(reward)
        terminal |= self._move_enemy_bullets()
        for timer in (self.spawn_timer, self.diver_timer, self.rest):
            np.maximum(timer - 1, 0, out=timer)
        terminal |= self.oxygen <= 0
        below = self.y > 0
        self.oxygen -= below
        surfacing = (~(below | self.surfaced)).nonzero()[0]
        self.surfaced &= ~below
        if surfacing.size:
            safe = self.divers[surfacing] != 0
            terminal[surfacing[~safe]] = True
            self._surface(surfacing[safe], reward)
        return reward, terminal

    # -- what appears ------------------------------------------------------------------------------------------

    def _spawn(self, playing: np.ndarray) -> None:
        envs = (playing & (self.spawn_timer == 0)).nonzero()[0]
        if envs.size:
            self._spawn_enemies(envs)
            self.spawn_timer[envs] = self.spawn_speed[envs]
        envs = (playing & (self.diver_timer == 0)).nonzero()[0]
        if envs.size:
            right = self.streams.uniform(envs) < 1 / 2
            y = 1 + self.streams.below(envs, np.full(len(envs), 8))
            self._add(envs, y, right, np.full(len(envs), DIVER), np.full(len(envs), DIVER_MOVE))
            self.diver_timer[envs] = DIVER_SPAWN

    def _spawn_enemies(self, envs: np.ndarray) -> None:
        """A fish or a submarine appears, but not in a row where one moves the other way."""
        right, sub = self.streams.uniform(envs) < 1 / 2, self.streams.uniform(envs) < 1 / 3
        y = 1 + self.streams.below(envs, np.full(len(envs), 8))
        kind, direction = self.kind[envs], np.where(right, 1, -1)
        enemy = (kind == FISH) | (kind == SUB)
        opposite = enemy & (self.cell[envs] // 12 == y[:, None]) & (self.direction[envs] != direction[:, None])
        free = (~opposite.any(axis=1)).nonzero()[0]
        if free.size:
            envs = envs[free]
            self._add(envs, y[free], right[free], np.where(sub[free], SUB, FISH), self.move_speed[envs])

    def _add(self, envs: np.ndarray, y: np.ndarray, right: np.ndarray, kind: np.ndarray, timer: np.ndarray) -> None:
        """Put one more into a free slot of each game `envs`."""
        free = self.kind[envs] == EMPTY
        if not free.any(axis=1).all():
            self._add_slots()
            free = self.kind[envs] == EMPTY
        slot = free.argmax(axis=1)
        self.cell[envs, slot] = 12 * y + np.where(right, 1, 10)
        self.direction[envs, slot] = np.where(right, 1, -1)
        self.kind[envs, slot], self.timer[envs, slot] = kind, timer
        self.shot_timer[envs, slot] = np.where(kind == SUB, SHOT_INTERVAL, NEVER)
        self.order[envs, slot] = self.clock + np.where(kind == SUB, SUBS_LAST, 0)

    def _add_slots(self) -> None:
        """Double the number of slots of every game."""
        for name, value in zip(SLOTS, EMPTY_SLOT, strict=True):
            slots = getattr(self, name)
            setattr(self, name, np.concatenate([slots, np.full_like(slots, value)], axis=1))

    def _clear(self, slots: np.ndarray) -> None:
        """Empty the slots of these flat indices."""
        for name, value in zip(SLOTS, EMPTY_SLOT, strict=True):
            getattr(self, name).reshape(-1)[slots] = value

    # -- what moves --------------------------------------------------------------------------------------------

    def _steer(self, action: np.ndarray) -> None:
        firing = ((action == FIRE) & (self.rest == 0)).nonzero()[0]
        if firing.size:
            for bullets in (self.bullet_cell, self.bullet_direction):
                bullets[firing, 0] = bullets[firing, 1]
            self.bullet_cell[firing, 1] = 12 * self.y[firing] + self.x[firing] + 1
            self.bullet_direction[firing, 1] = np.where(self.right[firing], 1, -1)
            self.rest[firing] = COOL_DOWN
        self.x = np.minimum(np.maximum(self.x + STEP_X[action], 0), 9)
        self.y = np.minimum(np.maximum(self.y + STEP_Y[action], 0), 8)
        self.right = (self.right | (action == RIGHT)) & (action != LEFT)

    def _move_bullets(self) -> np.ndarray:
        """Move the player's bullets; return the number of enemies they strike, [E]."""
        self.bullet_cell += self.bullet_direction
        gone = OUTSIDE[self.bullet_cell]
        self.bullet_cell[gone], self.bullet_direction[gone] = NO_BULLET, 0
        reward = np.zeros(self.num_envs, np.int64)
        self._strike(reward, bullets=(1, 0), oldest=True)
        return reward

    def _strike(self, reward: np.ndarray, bullets: tuple[int, int], oldest: bool) -> None:
        """Remove enemies in the cell of a bullet, one per bullet, and these bullets; count them in `reward`."""
        shared = self.cell[:, None] == self.bullet_cell[:, :, None]
        if not np.count_nonzero(shared):
            return
        envs = shared.any(axis=(1, 2)).nonzero()[0]
        for bullet in bullets:
            kind = self.kind[envs]
            struck = (self.cell[envs] == self.bullet_cell[envs, bullet][:, None]) & ((kind == FISH) | (kind == SUB))
            order = np.where(struck, self.order[envs] if oldest else -self.order[envs], 2 * SUBS_LAST)
            slot, hit = order.argmin(axis=1), struck.any(axis=1)
            hits = envs[hit]
            self._clear(hits * self.cell.shape[1] + slot[hit])
            self.bullet_cell[hits, bullet], self.bullet_direction[hits, bullet] = NO_BULLET, 0
            reward[hits] += 1

    def _move_others(self, reward: np.ndarray) -> np.ndarray:
        """Move divers, fish and submarines, which also fire; return the games where the player meets an enemy, [E]."""
        player = (12 * self.y + self.x + 1)[:, None]
        met = self.cell == player
        cell, timer, shot_timer = self.cell.reshape(-1), self.timer.reshape(-1), self.shot_timer.reshape(-1)
        moving, firing = (timer == 0).nonzero()[0], (shot_timer == 0).nonzero()[0]
        timer -= 1
        shot_timer -= 1
        if moving.size:
            diver = self.kind.reshape(-1)[moving] == DIVER
            timer[moving] = np.where(diver, DIVER_MOVE, self.move_speed[moving // self.cell.shape[1]])
            cell[moving] += self.direction.reshape(-1)[moving]
            met |= self.cell == player  # before the move or after it
        terminal = self._meet(met) if np.count_nonzero(met) else np.zeros(self.num_envs, bool)
        if firing.size:
            shot_timer[firing] = SHOT_INTERVAL
            self._enemies_fire(firing)
        if moving.size:
            gone = moving[OUTSIDE[cell[moving]]]
            if gone.size:
                self._clear(gone)
            self._strike(reward, bullets=(0, 1), oldest=False)
        return terminal

    def _meet(self, met: np.ndarray) -> np.ndarray:
        """Take divers aboard, the newest first while there is room; return the games where an enemy is met, [E]."""
        diver = self.kind == DIVER
        aboard = met & diver
        number, room = np.count_nonzero(aboard, axis=1), MOST_DIVERS - self.divers
        for env in (number > room).nonzero()[0].tolist():
            slots = aboard[env].nonzero()[0]
            newest = slots[np.argsort(-self.order[env, slots])]
            aboard[env, newest[room[env] :]] = False
        self.divers += np.count_nonzero(aboard, axis=1)
        terminal = (met & ~diver).any(axis=1)
        self._clear(aboard.reshape(-1).nonzero()[0])
        return terminal

    def _enemies_fire(self, slots: np.ndarray) -> None:
        """Add a bullet in the cell of each submarine; one that has left the screen fires outside of it."""
        cell = self.cell.reshape(-1)[slots]
        row, bit = 10 * (slots // self.cell.shape[1]) + cell // 12, (1 << cell % 12 >> 1) & 1023
        right = self.direction.reshape(-1)[slots] > 0
        np.bitwise_or.at(self.bullets_right.reshape(-1), row[right], bit[right])
        np.bitwise_or.at(self.bullets_left.reshape(-1), row[~right], bit[~right])

    def _move_enemy_bullets(self) -> np.ndarray:
        """Move the enemies' bullets; return the games where one meets the player, before or after, [E] bool."""
        row = self._rows + self.y
        left, right = self.bullets_left.take(row), self.bullets_right.take(row)
        near = left | left >> 1 | right | right << 1
        self.bullets_left >>= 1
        self.bullets_right <<= 1
        self.bullets_right &= 1023
        return (near >> self.x) & 1 == 1

    def _surface(self, envs: np.ndarray, reward: np.ndarray) -> None:
        """Leave one diver, or six for a reward of the oxygen left; fill the oxygen; raise the difficulty."""
        full = self.divers[envs] == MOST_DIVERS
        reward[envs] += np.where(full, self.oxygen[envs] * 10 // FULL_OXYGEN, 0)
        self.divers[envs] = np.where(full, 0, self.divers[envs]) - 1  # -1 after six, as in the package
        self.oxygen[envs], self.surfaced[envs] = FULL_OXYGEN, True
        if self.ramping:
            faster = self.ramps[envs] % 2
            self.move_speed[envs] = np.maximum(self.move_speed[envs] - faster, FASTEST_MOVE)
            self.spawn_speed[envs] = np.maximum(self.spawn_speed[envs] - 1, 1)
            self.ramps[envs] += 1

    # -- the screen --------------------------------------------------------------------------------------------

    def draw(self) -> None:
        cells, first, sub = self._wide_cells, self._wide_first, 12 * self.y + self.x + 1
        each = first[:, None]
        cells.fill(False)
        cells[first + 10 * sub + SUB_FRONT] = True
        cells[first + 10 * (sub + np.where(self.right, -1, 1)) + SUB_BACK] = True
        cells[each + 10 * self.bullet_cell + BULLET] = True
        place = each + 10 * self.cell
        cells[place + self.kind] = True
        cells[place - 10 * self.direction + TRAIL] = True
        self.obs[...] = self._wide[:, :, 1:11]
        self.obs[..., ENEMY_BULLET] = BITS.take(self.bullets_left | self.bullets_right, axis=0)
        self.obs[:, 9, :, OXYGEN] = OXYGEN_GAUGE[np.maximum(self.oxygen, 0) * 10 // FULL_OXYGEN]
        self.obs[:, 9, :, DIVERS] = DIVER_GAUGE[np.maximum(self.divers, 0)]
