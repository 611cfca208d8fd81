"""MinAtar (Young and Tian, 2019, arXiv:1903.03176): `minatar/breakout`, asterix, freeway, seaquest, space_invaders.

Frames, random numbers and sticky actions are those of the package's own environment. Observations are [10, 10, C] bool,
height x width x channel. Only the file of the game is loaded, because the package imports plotting libraries (1.5 s
and 157 MB in every sampler).

The package reports every end as a termination. Freeway only ends by its time limit of 2,500 steps, which observations
do not show, so here it is a truncation: the learner bootstraps from the last observation.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sfactory.envs import (
    ActionLeaf,
    EnvError,
    EnvFault,
    EnvSpec,
    Episode,
    EpisodeTally,
    Leaf,
    Step,
    env_fault,
    missing_package,
    next_seed,
    suggest,
)
from sfactory.envs.saved_state import decode, encode, plain_attributes, set_attributes

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
ENDS_BY_CLOCK = frozenset({"freeway"})
FPS = 10  # for videos; the games themselves have no natural speed

BACKGROUND = (18, 18, 28)
COLOURS = {  # channel -> RGB; the spelling is the package's. Later ones are drawn over earlier ones.
    "trail": (78, 86, 130), "speed1": (50, 90, 70), "speed2": (80, 110, 60), "speed3": (120, 115, 50),
    "speed4": (140, 90, 45), "speed5": (150, 60, 50), "brick": (198, 92, 66), "car": (236, 88, 76),
    "paddle": (108, 196, 255), "ball": (255, 255, 255), "gold": (255, 206, 64), "enemy": (236, 88, 76),
    "player": (108, 196, 255), "chicken": (255, 238, 130), "alien": (120, 200, 110), "alien_left": (120, 200, 110),
    "alien_right": (90, 170, 150), "cannon": (108, 196, 255), "sub_back": (60, 120, 180), "sub_front": (108, 196, 255),
    "enemy_fish": (255, 150, 70), "enemy_sub": (236, 88, 76), "diver": (255, 238, 130), "oxygen_guage": (110, 220, 160),
    "diver_guage": (255, 238, 130), "friendly_bullet": (255, 255, 255), "enemy_bullet": (255, 110, 200),
}  # fmt: skip


def ids() -> tuple[str, ...]:
    """List the games."""
    return GAMES


def load_game(game: str) -> ModuleType:
    """Load the module of one game from its file, without importing the package."""
    if game not in GAMES:
        raise EnvError(f"minatar has no game {game!r}{suggest(game.split('-')[0], GAMES)}")
    package = importlib.util.find_spec("minatar")
    if package is None or not package.submodule_search_locations:
        raise missing_package(f"minatar/{game}", "minatar", "minatar")
    path = Path(package.submodule_search_locations[0]) / "environments" / f"{game}.py"
    spec = importlib.util.spec_from_file_location(f"minatar.environments.{game}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise EnvError(f"minatar/{game}: the installed package has no file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class MinAtarGroup:
    """Group of E copies of one game, stepped in one loop over lists of bound methods."""

    def __init__(
        self,
        game: str,
        num_envs: int,
        seeds: Sequence[int],
        sticky_action_prob: float,
        difficulty_ramping: bool,
        minimal_actions: bool,
        max_episode_steps: int | None,
    ) -> None:
        self.num_envs, self.game = num_envs, game
        self.seeds = list(seeds)
        self._new_game, self._ramping = load_game(game).Env, difficulty_ramping
        self._sticky, self._max_steps = sticky_action_prob, max_episode_steps
        self.games: list[Any] = [None] * num_envs
        self._draw: list[Any] = [None] * num_envs
        self._act: list[Any] = [None] * num_envs
        self._state: list[Any] = [None] * num_envs
        self._last_action = [0] * num_envs
        self._over = [False] * num_envs  # the next step resets
        for env in range(num_envs):
            self._build(env)
        actions = self.games[0].minimal_action_set() if minimal_actions else list(range(6))
        self._legal = dict(enumerate(actions))  # the lookup is also the check of actions: NaN and -1 are not keys
        shape = tuple(self.games[0].state_shape())
        rules = f"sticky {sticky_action_prob:g}, {'' if difficulty_ramping else 'no '}difficulty ramping"
        self.spec = EnvSpec(
            name=f"minatar/{game}",
            obs={"obs": Leaf(shape, "bool")},
            actions={"action": ActionLeaf((), "int64", "discrete", (len(actions),))},
            max_episode_steps=max_episode_steps,
            protocol=f"minatar {'v1' if minimal_actions else 'v0'}, {len(actions)} actions, {rules}",
        )
        self.obs = {"obs": np.zeros((num_envs, *shape), bool)}
        self._rows = self.obs["obs"].reshape(-1, *shape[1:])  # [E * 10, 10, C], the same memory
        self.tally = EpisodeTally(num_envs)

    def _build(self, env: int) -> None:
        """Create and reset a game with its own seeded random stream."""
        game = self._new_game(ramping=self._ramping)
        game.random = np.random.RandomState(self.seeds[env])
        game.reset()
        self.games[env], self._act[env], self._state[env] = game, game.act, game.state
        self._draw[env] = game.random.random_sample  # called directly, because rand() is a slower wrapper
        self._last_action[env], self._over[env] = 0, False

    def _replace(self, env: int) -> None:
        """Replace a failed game by one with a new seed."""
        self.seeds[env] = next_seed(self.seeds[env])
        self._build(env)
        self.tally.drop(env)

    def _observe(self) -> None:
        """Write the observation of every game to the group's array, in one copy."""
        np.concatenate([state() for state in self._state], out=self._rows)

    def reset(self) -> dict[str, np.ndarray]:
        """Reset every game that has made a step. New games are already reset, so the first call only observes."""
        for env, game in enumerate(self.games):
            if self._over[env] or self.tally.lengths[env]:
                game.reset()
                self._over[env] = False
                self.tally.drop(env)
        self._observe()
        return self.obs

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step every game; `action` [E] int64. Sticky actions are drawn in the same order as in the package."""
        num_envs = self.num_envs
        reward, valid = np.zeros(num_envs, np.float32), np.ones(num_envs, bool)
        ended: list[int] = []
        faults: list[EnvFault] = []
        legal, sticky, last_action, over = self._legal, self._sticky, self._last_action, self._over
        rows = zip(range(num_envs), action["action"].tolist(), self._draw, self._act, strict=True)
        for env, row, draw, act in rows:
            try:
                if over[env]:
                    over[env] = valid[env] = False
                    self.games[env].reset()  # last_action is kept, as in the package
                    continue
                chosen = legal[row]
                if draw() < sticky:
                    chosen = last_action[env]
                last_action[env] = chosen
                game_reward, terminal = act(chosen)
                if game_reward:
                    reward[env] = game_reward
                if terminal:
                    ended.append(env)
            except Exception as error:
                faults.append(self._fail(env, row, error))
                reward[env], valid[env] = 0.0, False
        self.tally.count(reward, valid)
        terminated, truncated = self._ends(ended)
        try:
            self._observe()
        except Exception:  # rare: find the game that raised
            self._observe_one_by_one(faults, reward, valid, terminated, truncated)
        episodes: tuple[Episode, ...] = ()
        if ended or self._max_steps:
            ended = np.flatnonzero(terminated | truncated).tolist()
            episodes = self.tally.end(ended)
            for env in ended:
                over[env] = True
        return Step(self.obs, reward, terminated, truncated, valid, ~valid, episodes, tuple(faults))

    def _ends(self, ended: list[int]) -> tuple[np.ndarray, np.ndarray]:
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        if ended:
            (truncated if self.game in ENDS_BY_CLOCK else terminated)[ended] = True
        if self._max_steps:
            truncated |= (self.tally.lengths >= self._max_steps) & ~terminated
        return terminated, truncated

    def _fail(self, env: int, row: Any, error: Exception) -> EnvFault:
        """Report the failure of one game and replace it."""
        if isinstance(error, KeyError) and row not in self._legal:
            error = ValueError(f"illegal action {row}: actions are 0 to {len(self._legal) - 1}")
        report = env_fault(env, error, self.seeds[env], int(self.tally.lengths[env]))
        self._replace(env)
        return report

    def _observe_one_by_one(
        self, faults: list[EnvFault], reward: np.ndarray, valid: np.ndarray, *ends: np.ndarray
    ) -> None:
        for env in range(self.num_envs):
            try:
                self.obs["obs"][env] = self._state[env]()
            except Exception as error:
                faults.append(self._fail(env, 0, error))
                self.obs["obs"][env] = self._state[env]()
                reward[env], valid[env] = 0.0, False
                for end in ends:
                    end[env] = False

    render_fps = FPS

    def render(self, env: int) -> np.ndarray:
        """Render the observation, one pixel per cell, uint8 [10, 10, 3]."""
        channels, cells = self.games[env].channels, self.obs["obs"][env]
        picture = np.full((*cells.shape[:2], 3), BACKGROUND, np.uint8)
        for name in sorted(channels, key=list(COLOURS).index):
            picture[cells[..., channels[name]]] = COLOURS[name]
        return picture

    def snapshot(self) -> Any:
        """Return the state as JSON: games, their random numbers, sticky actions, the tally."""
        group = [self.seeds, self._last_action, self._over, self.tally.returns, self.tally.lengths]
        return {"games": [plain_attributes(game) for game in self.games], "group": encode(group)}

    def restore(self, state: Any) -> None:
        """Load the state of `snapshot` into a group that was built with the same settings."""
        group = decode(state["group"])
        self.seeds, self._last_action, self._over, self.tally.returns, self.tally.lengths = group
        for game, attributes in zip(self.games, state["games"], strict=True):
            set_attributes(game, attributes)
        self._observe()

    def close(self) -> None:
        """Do nothing: games are plain Python objects."""


def raw_loop(env_id: str, num_envs: int, seed: int, **settings: Any) -> Callable[[], int]:
    """Return a plain loop over the game's own act, state and reset."""
    games = [load_game(env_id).Env(ramping=settings.get("difficulty_ramping", True)) for _ in range(num_envs)]
    draws = np.random.RandomState(seed)
    for game in games:
        game.random = np.random.RandomState(seed)
        game.reset()

    def step() -> int:
        for game, action in zip(games, draws.randint(6, size=num_envs).tolist(), strict=True):
            _, over = game.act(action)
            if over:
                game.reset()
            game.state()
        return num_envs

    return step


def make(
    env_id: str,
    *,
    num_envs: int,
    seeds: Sequence[int],
    sticky_action_prob: float = 0.1,
    difficulty_ramping: bool = True,
    minimal_actions: bool = False,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
) -> MinAtarGroup:
    """Build a group of one game.

    minimal_actions: the game's own actions (-v1) instead of all 6 (-v0, as in the paper).
    max_episode_steps: truncate episodes. Only Freeway has a limit of its own, so an evaluation needs one.
    render_mode: has no effect; every group has images.
    """
    if not 0.0 <= sticky_action_prob < 1.0:
        raise EnvError(f"minatar/{env_id}: sticky_action_prob must be in [0, 1) (got {sticky_action_prob})")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise EnvError(f"minatar/{env_id}: max_episode_steps must be >= 1 (got {max_episode_steps})")
    return MinAtarGroup(
        env_id, num_envs, seeds, sticky_action_prob, difficulty_ramping, minimal_actions, max_episode_steps
    )
