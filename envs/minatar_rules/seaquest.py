"""Seaquest: a submarine that shoots fish and submarines, picks up divers and must surface for oxygen with one aboard.

Fish, enemy submarines and divers of a game share one array of slots. Where several of them meet in one cell, the order
in which they appeared decides, as in the package: the player's newer bullet strikes first, and strikes the oldest fish,
then the oldest submarine; of what moves into a bullet, the newest submarine is struck, then the newest fish. The player
can fire every 5 steps and a bullet is gone after 10, so there are two at most.

What is in a slot is one number, 240 * kind + 120 * moves_right + cell, or `EMPTY`. Bullets are numbers of the same
form. A cell is 12 * y + column; columns are counted from 1: 0 and 11 are outside of the screen, which is drawn with one
more column on either side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sfactory_envs.minatar_rules.game import FIRE, LEFT, RIGHT, Game, walks
from sfactory_envs.minatar_rules.random_streams import RandomStreams

SUB_FRONT, SUB_BACK, BULLET, TRAIL, ENEMY_BULLET, FISH, SUB, OXYGEN, DIVERS, DIVER = range(10)  # channels
KINDS = np.array([FISH, SUB, DIVER, BULLET, ENEMY_BULLET])
IS_FISH, IS_SUB, IS_DIVER, IS_BULLET, IS_ENEMY_BULLET = (240 * kind for kind in range(5))
MOVES_RIGHT = 120
EMPTY = 240 * 5
ITEMS = np.arange(EMPTY + 1)  # the numbers above
PRESENT = ITEMS < EMPTY
CELL = np.where(PRESENT, ITEMS % 120, 0)  # an empty slot is outside of the screen
COLUMN, DIRECTION = CELL % 12, np.where(PRESENT, ITEMS // 120 % 2 * 2 - 1, 0)
MOVED = np.where(PRESENT & np.isin(COLUMN + DIRECTION, range(1, 11)), ITEMS + DIRECTION, EMPTY)
TARGET = np.where(PRESENT, CELL, -1)  # of a bullet; none of an empty slot
LANE = np.where(ITEMS < IS_DIVER, CELL // 12 * 2 + (DIRECTION > 0), -1)  # 2 * y + moves_right of enemies
LANES = np.arange(18)
APPEARS = (12 * (LANES // 2) + np.where(LANES % 2, MOVES_RIGHT + 1, 10)).tolist()
CHANNEL = KINDS[np.minimum(ITEMS // 240, 4)]
ITEM_AT = np.where(PRESENT, 10 * CELL + CHANNEL, 0)
TRAIL_AT = np.where(ITEMS < IS_BULLET, 10 * (CELL - DIRECTION) + TRAIL, 0)

PLAYERS = np.arange(200)  # 2 * (10 * y + x) + faces_right
PLAYER_CELL = PLAYERS // 20 * 12 + PLAYERS // 2 % 10 + 1
FRONT_AT, BACK_AT = 10 * PLAYER_CELL + SUB_FRONT, 10 * (PLAYER_CELL + 1 - PLAYERS % 2 * 2) + SUB_BACK
FIRED = IS_BULLET + MOVES_RIGHT * (PLAYERS % 2) + PLAYER_CELL
START = 2 * 5
AT_SURFACE = (PLAYERS < 20).astype(int)

FULL_OXYGEN, MOST_DIVERS = 200, 6
SLOWEST_SPAWN, DIVER_SPAWN = 20, 30  # steps from one to the next
SLOWEST_MOVE, FASTEST_MOVE, DIVER_MOVE = 5, 2, 5  # steps of rest between two moves
RELOAD, SHOT_INTERVAL = 5, 10
NEVER = -1  # a time that has passed
OXYGEN_GAUGE = np.arange(10) < (np.arange(FULL_OXYGEN + 1) * 10 // FULL_OXYGEN)[:, None]
DIVER_GAUGE = (np.arange(10) >= 9 - np.arange(7)[:, None]) & (np.arange(10) < 9)


def _steered() -> np.ndarray:
    """Return the table 200 * action + player -> the player after it, [1200]."""
    cells = walks(0, 8).reshape(6, 100)
    steered = np.stack([2 * cells, 2 * cells + 1], axis=2)
    steered[LEFT] &= ~1
    steered[RIGHT] |= 1
    return steered.ravel()


class Seaquest(Game):
    """E games of Seaquest."""

    CHANNELS = 10
    STATE = (
        "slots", "move_time", "shot_time", "born", "player", "oxygen", "divers", "surfaced", "spawn_time",
        "diver_time", "reload_time", "spawn_interval", "move_interval", "ramps", "newer", "older", "enemy_bullets",
        "bullet_env",
    )  # fmt: skip
    STEERED = _steered()

    def __init__(self, num_envs: int, streams: RandomStreams, ramping: bool) -> None:
        super().__init__(num_envs, streams, ramping)
        self.slots, self.move_time, self.shot_time, self.born = (
            np.full((num_envs, 8), value) for value in (EMPTY, NEVER, NEVER, 0)
        )
        self.player, self.oxygen, self.divers, self.surfaced, self.spawn_time, self.diver_time, self.reload_time = (
            np.zeros(num_envs, np.int64) for _ in range(7)
        )
        self.spawn_interval, self.move_interval, self.ramps = (np.zeros(num_envs, np.int64) for _ in range(3))
        self.newer, self.older = np.full(num_envs, EMPTY), np.full(num_envs, EMPTY)  # the player's bullets
        self.enemy_bullets, self.bullet_env = np.zeros((2, 0), np.int64)  # of all games, and the game of each
        self._number_slots()
        self._wide = np.zeros((num_envs, 10, 12, self.CHANNELS), bool)
        self._wide_cells = self._wide.reshape(-1)
        self._wide_first = np.arange(num_envs) * 1200

    def reset(self, envs: np.ndarray) -> None:
        begin = self.clock + 1
        self.slots[envs] = self.newer[envs] = self.older[envs] = EMPTY
        self.move_time[envs] = self.shot_time[envs] = NEVER
        self.player[envs], self.oxygen[envs], self.divers[envs], self.surfaced[envs] = START, FULL_OXYGEN, 0, 1
        self.spawn_time[envs], self.diver_time[envs] = begin + SLOWEST_SPAWN, begin + DIVER_SPAWN
        self.reload_time[envs], self.ramps[envs] = begin, 0
        self.spawn_interval[envs], self.move_interval[envs] = SLOWEST_SPAWN, SLOWEST_MOVE
        if self.bullet_env.size:
            begun = np.zeros(self.num_envs, bool)
            begun[envs] = True
            self._keep_enemy_bullets(~begun[self.bullet_env])

    def act(self, action: np.ndarray, playing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.clock += 1
        reward, terminal = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        for env in (playing & (self.spawn_time == self.clock)).nonzero()[0].tolist():
            self._spawn_enemy(env)
        for env in (playing & (self.diver_time == self.clock)).nonzero()[0].tolist():
            self._spawn_diver(env)
        firing = ((action == FIRE) & (self.reload_time <= self.clock)).nonzero()[0]
        if firing.size:
            self.older[firing], self.newer[firing] = self.newer[firing], FIRED[self.player[firing]]
            self.reload_time[firing] = self.clock + RELOAD
        self.player = self.STEERED[200 * action + self.player]
        self.newer, self.older = MOVED[self.newer], MOVED[self.older]
        self._move_items(reward, terminal)
        if self.bullet_env.size:
            self._move_enemy_bullets(terminal)
        self._breathe(reward, terminal)
        return reward, terminal

    # -- what appears ------------------------------------------------------------------------------------------

    def _spawn_enemy(self, env: int) -> None:
        """A fish or a submarine appears, but not in a row where one moves the other way."""
        self.spawn_time[env] = self.clock + self.spawn_interval[env]
        right, sub = self.streams.uniform(env) < 1 / 2, self.streams.uniform(env) < 1 / 3
        lane = 2 + 2 * self.streams.below(env, 8) + right
        if lane ^ 1 not in LANE[self.slots[env]].tolist():
            shot_time = self.clock + SHOT_INTERVAL if sub else NEVER
            self._add(env, APPEARS[lane] + IS_SUB * sub, self.move_interval.item(env), shot_time)

    def _spawn_diver(self, env: int) -> None:
        self.diver_time[env] = self.clock + DIVER_SPAWN
        right = self.streams.uniform(env) < 1 / 2
        lane = 2 + 2 * self.streams.below(env, 8) + right
        self._add(env, APPEARS[lane] + IS_DIVER, DIVER_MOVE, NEVER)

    def _add(self, env: int, item: int, rest: int, shot_time: int) -> None:
        """Put an item into a free slot of one game."""
        slots = self.slots[env].tolist()
        if EMPTY in slots:
            slot = slots.index(EMPTY)
        else:
            slot = len(slots)
            self._add_slots()
        self.slots[env, slot], self.born[env, slot] = item, self.clock
        self.move_time[env, slot], self.shot_time[env, slot] = self.clock + rest, shot_time

    def _add_slots(self) -> None:
        """Double the number of slots of every game."""
        for name, value in (("slots", EMPTY), ("move_time", NEVER), ("shot_time", NEVER), ("born", 0)):
            slots = getattr(self, name)
            setattr(self, name, np.concatenate([slots, np.full_like(slots, value)], axis=1))
        self._number_slots()

    def _number_slots(self) -> None:
        self._game_of = np.arange(self.slots.size) // self.slots.shape[1]  # of each flat index

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._number_slots()

    # -- what moves --------------------------------------------------------------------------------------------

    def _move_items(self, reward: np.ndarray, terminal: np.ndarray) -> None:
        """Strike with the player's bullets, move what is in the slots, let submarines fire and strike again."""
        slots, move_time, game_of = self.slots.reshape(-1), self.move_time.reshape(-1), self._game_of
        struck = game_of[self._in_bullets(slots, game_of)]
        for env in set(struck.tolist()):
            self._strike(env, reward, (self.newer, self.older), oldest=True)
        player = PLAYER_CELL[self.player]
        met = CELL[slots] == player[game_of]
        moving = (move_time == self.clock).nonzero()[0]
        games, moved = game_of[moving], MOVED[slots[moving]]
        met[moving] |= CELL[moved] == player[games]  # before the move or after it
        if np.count_nonzero(met):
            for env in set(game_of[met].tolist()):
                self._meet(env, met.reshape(self.slots.shape)[env].nonzero()[0].tolist(), terminal)
            moved = MOVED[slots[moving]]  # divers have gone
        slots[moving] = moved
        rest = self.move_interval[games]
        rest[moved >= IS_DIVER] = DIVER_MOVE
        move_time[moving] = self.clock + 1 + rest
        firing = (self.shot_time.reshape(-1) == self.clock).nonzero()[0]
        if firing.size:
            self._enemies_fire(firing)
        struck = games[self._in_bullets(moved, games)]
        for env in set(struck.tolist()):
            self._strike(env, reward, (self.older, self.newer), oldest=False)

    def _in_bullets(self, items: np.ndarray, games: np.ndarray) -> np.ndarray:
        """Return which of the `items` [n] are in the cell of a bullet of the player in their `games` [n]."""
        cells = CELL[items]
        return (cells == TARGET[self.newer][games]) | (cells == TARGET[self.older][games])

    def _strike(self, env: int, reward: np.ndarray, bullets: tuple[np.ndarray, ...], oldest: bool) -> None:
        """Remove one enemy in the cell of each bullet of one game, and this bullet; count them in `reward`.

        oldest: the oldest fish comes first and the newest submarine last, or else the other way round.
        """
        slots, choose = self.slots[env], min if oldest else max
        for bullet in bullets:
            there = ((CELL[slots] == TARGET[bullet[env]]) & (slots < IS_DIVER)).nonzero()[0].tolist()
            if there:
                first = choose(there, key=lambda slot: (slots[slot] >= IS_SUB, self.born[env, slot]))
                slots[first] = bullet[env] = EMPTY
                reward[env] += 1

    def _meet(self, env: int, met: list[int], terminal: np.ndarray) -> None:
        """Take the divers in the slots `met` aboard, the newest first while there is room; an enemy is the end."""
        slots, aboard = self.slots[env], self.divers.item(env)
        for slot in sorted(met, key=self.born[env].item, reverse=True):
            if slots[slot] < IS_DIVER:
                terminal[env] = True
            elif aboard < MOST_DIVERS:
                slots[slot] = EMPTY
                aboard += 1
        self.divers[env] = aboard

    def _enemies_fire(self, places: np.ndarray) -> None:
        """Add a bullet in the cell of each submarine that is still there."""
        self.shot_time.reshape(-1)[places] = self.clock + 1 + SHOT_INTERVAL
        places = places[self.slots.take(places) != EMPTY]
        self.enemy_bullets = np.concatenate([self.enemy_bullets, self.slots.take(places) + IS_ENEMY_BULLET - IS_SUB])
        self.bullet_env = np.concatenate([self.bullet_env, self._game_of[places]])

    def _move_enemy_bullets(self, terminal: np.ndarray) -> None:
        """Move the enemies' bullets; one that meets the player before or after its move is the end."""
        player, moved = PLAYER_CELL[self.player][self.bullet_env], MOVED[self.enemy_bullets]
        met = (CELL[self.enemy_bullets] == player) | (CELL[moved] == player)
        terminal[self.bullet_env[met]] = True
        self.enemy_bullets = moved
        on_screen = moved != EMPTY
        if np.count_nonzero(on_screen) < len(moved):
            self._keep_enemy_bullets(on_screen)

    def _keep_enemy_bullets(self, kept: np.ndarray) -> None:
        self.enemy_bullets, self.bullet_env = self.enemy_bullets[kept], self.bullet_env[kept]

    # -- the player's oxygen -----------------------------------------------------------------------------------

    def _breathe(self, reward: np.ndarray, terminal: np.ndarray) -> None:
        """Use oxygen below the surface. To come up without a diver is the end."""
        terminal |= self.oxygen <= 0
        at_surface = AT_SURFACE[self.player]
        self.oxygen += at_surface
        self.oxygen -= 1
        surfacing = (at_surface > self.surfaced).nonzero()[0]
        self.surfaced &= at_surface
        if surfacing.size:
            safe = self.divers[surfacing] != 0
            terminal[surfacing[~safe]] = True
            if np.count_nonzero(safe):
                self._surface(surfacing[safe], reward)

    def _surface(self, envs: np.ndarray, reward: np.ndarray) -> None:
        """Leave one diver, or six for a reward of the oxygen left; fill the oxygen; raise the difficulty."""
        full = self.divers[envs] == MOST_DIVERS
        reward[envs] += np.where(full, self.oxygen[envs] * 10 // FULL_OXYGEN, 0)
        self.divers[envs] = np.where(full, 0, self.divers[envs]) - 1  # -1 after six, as in the package
        self.oxygen[envs], self.surfaced[envs] = FULL_OXYGEN, 1
        if self.ramping:
            self.move_interval[envs] = np.maximum(self.move_interval[envs] - self.ramps[envs] % 2, FASTEST_MOVE)
            self.spawn_interval[envs] = np.maximum(self.spawn_interval[envs] - 1, 1)
            self.ramps[envs] += 1

    # -- the screen --------------------------------------------------------------------------------------------

    def draw(self) -> None:
        cells, first, obs = self._wide_cells, self._wide_first, self.obs
        cells.fill(False)
        cells[first + FRONT_AT[self.player]] = True
        cells[first + BACK_AT[self.player]] = True
        cells[first + ITEM_AT[self.newer]] = True
        cells[first + ITEM_AT[self.older]] = True
        cells[first[self.bullet_env] + ITEM_AT[self.enemy_bullets]] = True
        slots, first_of = self.slots.reshape(-1), first[self._game_of]
        cells[first_of + ITEM_AT[slots]] = True
        cells[first_of + TRAIL_AT[slots]] = True
        obs[...] = self._wide[:, :, 1:11]
        obs[:, 9, :, OXYGEN] = OXYGEN_GAUGE.take(self.oxygen, axis=0, mode="clip")
        obs[:, 9, :, DIVERS] = DIVER_GAUGE.take(self.divers, axis=0, mode="clip")
