"""Seaquest: a submarine that shoots fish and submarines, picks up divers and must surface for oxygen with one aboard.

Fish, submarines and divers of a game share one array of slots. Where several of them meet in one cell, the order in
which they appeared decides, as in the package: the player's newer bullet strikes first, and strikes the oldest fish,
then the oldest submarine; of what moves into a bullet, the newest submarine is struck, then the newest fish. The player
can fire every 5 steps and a bullet is gone after 10, so there are two at most.

Cells are numbered 12 * y + x + 1 on a screen with one more column on either side, so that what leaves the screen, and
the trail of what enters it, have a cell too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sfactory_envs.minatar_rules.game import FIRE, LEFT, RIGHT, Game, walks
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
SURFACE = 20  # players of a higher number are below the surface
ENEMY, NEW_DIVER, RELOAD = range(3)  # rows of `timers`
START, START_TIMERS = 2 * 5, np.array([[SLOWEST_SPAWN], [DIVER_SPAWN], [0]])
PLAYERS = np.arange(200)
ENEMIES = np.isin(np.arange(10), (FISH, SUB))
EDGE = np.array([0, 1, 10])  # direction -> the column it comes from, by index 1 and -1
BITS = (np.arange(1024)[:, None] >> np.arange(10)) & 1 == 1
OXYGEN_GAUGE = np.arange(10) < (np.arange(FULL_OXYGEN + 1) * 10 // FULL_OXYGEN)[:, None]
DIVER_GAUGE = (np.arange(10) >= 9 - np.arange(7)[:, None]) & (np.arange(10) < 9)
SLOTS = ("cell", "direction", "kind", "timer", "shot_timer", "order")
EMPTY_SLOT = (NOWHERE, 0, EMPTY, NEVER, NEVER, 0)


def _steered() -> np.ndarray:
    """200 * action + player -> the player after it; a player is 2 * (10 * y + x) + faces_right. [1200]."""
    cells = walks(0, 8).reshape(6, 100)
    steered = np.stack([2 * cells, 2 * cells + 1], axis=2)
    steered[LEFT] &= ~1
    steered[RIGHT] |= 1
    return steered.ravel()


class Seaquest(Game):
    """E games of Seaquest."""

    CHANNELS = 10
    STATE = (
        *SLOTS, "player", "oxygen", "divers", "surfaced", "timers", "spawn_speed", "move_speed", "ramps",
        "bullet_cell", "bullet_direction", "enemy_bullets", "clock",
    )  # fmt: skip
    STEERED = _steered()
    X, Y, FACING = PLAYERS // 2 % 10, PLAYERS // 20, 2 * (PLAYERS % 2) - 1
    CELL = 12 * Y + X + 1
    FRONT_AT, BACK_AT = 10 * CELL + SUB_FRONT, 10 * (CELL - FACING) + SUB_BACK
    FIRES = np.arange(6) == FIRE

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.cell, self.direction, self.kind, self.timer, self.shot_timer, self.order = (
            np.full((num_envs, 8), value) for value in EMPTY_SLOT
        )
        self.player, self.oxygen, self.divers, self.spawn_speed, self.move_speed, self.ramps = (
            np.zeros(num_envs, np.int64) for _ in range(6)
        )
        self.surfaced = np.zeros(num_envs, bool)
        self.timers = np.zeros((3, num_envs), np.int64)  # until an enemy appears, a diver appears, the player can fire
        self.bullet_cell, self.bullet_direction = np.zeros((2, num_envs, 2), np.int64)  # the newer one is last
        self.enemy_bullets = np.zeros((2, num_envs, 10), np.int64)  # to the left, to the right; bit x of row y
        self.clock = np.zeros(1, np.int64)  # steps of the group, for the order of appearance
        self._rows = np.arange(num_envs) * 10
        self._wide = np.zeros((num_envs, 10, 12, self.CHANNELS), bool)
        self._wide_cells = self._wide.reshape(-1)
        self._wide_first = np.arange(num_envs) * 1200
        self._wide_each = self._wide_first[:, None]

    def reset(self, envs: np.ndarray) -> None:
        for name, value in zip(SLOTS, EMPTY_SLOT, strict=True):
            getattr(self, name)[envs] = value
        self.player[envs] = START
        self.oxygen[envs], self.divers[envs], self.surfaced[envs] = FULL_OXYGEN, 0, True
        self.spawn_speed[envs], self.move_speed[envs], self.ramps[envs] = SLOWEST_SPAWN, SLOWEST_MOVE, 0
        self.timers[:, envs] = START_TIMERS
        self.bullet_cell[envs], self.bullet_direction[envs] = NO_BULLET, 0
        self.enemy_bullets[:, envs] = 0

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        reward, terminal = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        self.clock += 1
        self._spawn(playing)
        firing = (self.FIRES[action] > self.timers[RELOAD]).nonzero()[0]
        if firing.size:
            self._fire(firing)
        player = self.player = self.STEERED[200 * action + self.player]
        self._move_bullets()
        self._strike(reward, bullets=(1, 0), oldest=True)
        self._move_others(terminal)
        self._strike(reward, bullets=(0, 1), oldest=False)
        self._move_enemy_bullets(terminal)
        np.maximum(self.timers - 1, 0, out=self.timers)
        terminal |= self.oxygen <= 0
        below = player >= SURFACE
        self.oxygen -= below
        self.surfaced &= ~below
        surfacing = (~(below | self.surfaced)).nonzero()[0]
        if surfacing.size:
            safe = self.divers[surfacing] != 0
            terminal[surfacing[~safe]] = True
            self._surface(surfacing[safe], reward)
        return reward, terminal

    # -- what appears ------------------------------------------------------------------------------------------

    def _spawn(self, playing: np.ndarray) -> None:
        for timer, spawn in ((ENEMY, self._spawn_enemies), (NEW_DIVER, self._spawn_divers)):
            envs = (playing > self.timers[timer]).nonzero()[0]
            if envs.size:
                spawn(envs)

    def _spawn_enemies(self, envs: np.ndarray) -> None:
        """A fish or a submarine appears, but not in a row where one moves the other way."""
        self.timers[ENEMY, envs] = self.spawn_speed[envs]
        side, kind = self.streams.uniforms(envs, 2)
        y, direction = 1 + self.streams.bits(envs, 3), np.where(side < 1 / 2, 1, -1)
        others = ENEMIES[self.kind[envs]] & (self.cell[envs] // 12 == y[:, None])
        free = ~(others & (self.direction[envs] != direction[:, None])).any(axis=1)
        sub = kind < 1 / 3
        appears = (y, direction, np.where(sub, SUB, FISH), self.move_speed[envs], np.where(sub, SHOT_INTERVAL, NEVER))
        self._add(envs[free], *(values[free] for values in appears))

    def _spawn_divers(self, envs: np.ndarray) -> None:
        self.timers[NEW_DIVER, envs] = DIVER_SPAWN
        direction = np.where(self.streams.uniform(envs) < 1 / 2, 1, -1)
        self._add(envs, 1 + self.streams.bits(envs, 3), direction, DIVER, DIVER_MOVE, NEVER)

    def _add(self, envs: np.ndarray, y: np.ndarray, direction: np.ndarray, kind: Any, timer: Any, shot: Any) -> None:
        """Put one more into a free slot of each game `envs`."""
        free = self.kind[envs] == EMPTY
        slot = free.argmax(axis=1)
        if np.count_nonzero(self.kind[envs, slot] == EMPTY) < len(envs):
            self._add_slots()
            return self._add(envs, y, direction, kind, timer, shot)
        place = envs * self.kind.shape[1] + slot
        cell, order = 12 * y + EDGE[direction], self.clock + SUBS_LAST * (kind == SUB)
        for name, values in zip(SLOTS, (cell, direction, kind, timer, shot, order), strict=True):
            getattr(self, name).reshape(-1)[place] = values
        return None

    def _add_slots(self) -> None:
        """Double the number of slots of every game."""
        for name, value in zip(SLOTS, EMPTY_SLOT, strict=True):
            slots = getattr(self, name)
            setattr(self, name, np.concatenate([slots, np.full_like(slots, value)], axis=1))

    def _clear(self, places: np.ndarray) -> None:
        """Empty the slots of these flat indices."""
        for name, value in zip(SLOTS, EMPTY_SLOT, strict=True):
            getattr(self, name).reshape(-1)[places] = value

    # -- what moves --------------------------------------------------------------------------------------------

    def _fire(self, envs: np.ndarray) -> None:
        player = self.player[envs]
        self.bullet_cell[envs, 0], self.bullet_cell[envs, 1] = self.bullet_cell[envs, 1], self.CELL[player]
        self.bullet_direction[envs, 0] = self.bullet_direction[envs, 1]
        self.bullet_direction[envs, 1] = self.FACING[player]
        self.timers[RELOAD, envs] = COOL_DOWN

    def _move_bullets(self) -> None:
        """Move the player's bullets."""
        cell = self.bullet_cell.reshape(-1)
        cell += self.bullet_direction.reshape(-1)
        gone = OUTSIDE[cell]
        cell[gone], self.bullet_direction.reshape(-1)[gone] = NO_BULLET, 0

    def _strike(self, reward: np.ndarray, bullets: tuple[int, int], oldest: bool) -> None:
        """Remove enemies in the cell of a bullet, one per bullet, and these bullets; count them in `reward`."""
        shared = self.cell[:, None] == self.bullet_cell[:, :, None]
        if not np.count_nonzero(shared):
            return
        envs = shared.any(axis=(1, 2)).nonzero()[0]
        for bullet in bullets:
            struck = (self.cell[envs] == self.bullet_cell[envs, bullet][:, None]) & ENEMIES[self.kind[envs]]
            order = np.where(struck, self.order[envs] if oldest else -self.order[envs], 2 * SUBS_LAST)
            slot, hit = order.argmin(axis=1), struck.any(axis=1)
            hits = envs[hit]
            self._clear(hits * self.cell.shape[1] + slot[hit])
            self.bullet_cell[hits, bullet], self.bullet_direction[hits, bullet] = NO_BULLET, 0
            reward[hits] += 1

    def _move_others(self, terminal: np.ndarray) -> None:
        """Move divers, fish and submarines, which also fire."""
        player = self.CELL[self.player][:, None]
        cell, timer, shot_timer = self.cell.reshape(-1), self.timer.reshape(-1), self.shot_timer.reshape(-1)
        met = self.cell == player
        moving, firing = (timer == 0).nonzero()[0], (shot_timer == 0).nonzero()[0]
        timer -= 1
        shot_timer -= 1
        if moving.size:
            diver = self.kind.take(moving) == DIVER
            timer[moving] = np.where(diver, DIVER_MOVE, self.move_speed[moving // self.cell.shape[1]])
            cell[moving] += self.direction.take(moving)
            met |= self.cell == player  # before the move or after it
        if np.count_nonzero(met):
            self._meet(met, terminal)
        if firing.size:
            shot_timer[firing] = SHOT_INTERVAL
            self._enemies_fire(firing)
        gone = moving[OUTSIDE[cell[moving]]]
        if gone.size:
            self._clear(gone)

    def _meet(self, met: np.ndarray, terminal: np.ndarray) -> None:
        """Take divers aboard, the newest first while there is room; to meet an enemy is the end."""
        diver = self.kind == DIVER
        aboard = met & diver
        number, room = np.count_nonzero(aboard, axis=1), MOST_DIVERS - self.divers
        for env in (number > room).nonzero()[0].tolist():
            slots = aboard[env].nonzero()[0]
            newest = slots[np.argsort(-self.order[env, slots])]
            aboard[env, newest[room[env] :]] = False
        self.divers += np.count_nonzero(aboard, axis=1)
        terminal |= (met & ~diver).any(axis=1)
        self._clear(aboard.reshape(-1).nonzero()[0])

    def _enemies_fire(self, places: np.ndarray) -> None:
        """Add a bullet in the cell of each submarine; one that has left the screen fires outside of it."""
        cell = self.cell.take(places)
        bit = (1 << cell % 12 >> 1) & 1023
        right = self.direction.take(places) > 0
        np.bitwise_or.at(self.enemy_bullets, (right.astype(int), places // self.cell.shape[1], cell // 12), bit)

    def _move_enemy_bullets(self, terminal: np.ndarray) -> None:
        """Move the enemies' bullets; one that meets the player before or after its move is the end."""
        bullets = self.enemy_bullets
        if not np.count_nonzero(bullets):
            return
        left, right = bullets.reshape(2, -1)[:, self._rows + self.Y[self.player]]
        near = left | left >> 1 | right | right << 1
        terminal |= (near >> self.X[self.player]) & 1 == 1
        bullets[0] >>= 1
        bullets[1] <<= 1
        bullets[1] &= 1023

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
        cells, first, each, obs = self._wide_cells, self._wide_first, self._wide_each, self.obs
        cells.fill(False)
        cells[first + self.FRONT_AT[self.player]] = True
        cells[first + self.BACK_AT[self.player]] = True
        cells[each + (10 * self.bullet_cell + BULLET)] = True
        place = each + 10 * self.cell
        cells[place + self.kind] = True
        cells[place + (TRAIL - 10 * self.direction)] = True
        obs[...] = self._wide[:, :, 1:11]
        if np.count_nonzero(self.enemy_bullets):
            obs[..., ENEMY_BULLET] = BITS.take(self.enemy_bullets[0] | self.enemy_bullets[1], axis=0)
        obs[:, 9, :, OXYGEN] = OXYGEN_GAUGE.take(self.oxygen, axis=0, mode="clip")
        obs[:, 9, :, DIVERS] = DIVER_GAUGE.take(self.divers, axis=0, mode="clip")
