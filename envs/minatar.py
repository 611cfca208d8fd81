"""MinAtar (Young and Tian, 2019, arXiv:1903.03176): `minatar/breakout`, asterix, freeway, seaquest, space_invaders.

Groups are stepped as arrays by our own rules. Frames, random numbers and sticky actions are those of the package's own
environment (tests/envs/test_minatar_family.py). Observations are [10, 10, C] bool, height x width x channel. Of the
package only the file of the game is loaded, because the package imports plotting libraries (1.5 s and 157 MB in every
sampler).

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
from sfactory_envs.minatar_rules import GAMES, RandomStreams

from sfactory.envs import (
    ActionLeaf,
    EnvError,
    EnvFault,
    EnvSpec,
    EpisodeTally,
    Leaf,
    Step,
    env_fault,
    missing_package,
    next_seed,
    suggest,
)
from sfactory.envs.saved_state import decode, encode

ILLEGAL = -1
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
    return tuple(GAMES)


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
    """Group of E copies of one game, stepped as arrays by our own rules (`sfactory_envs.minatar_rules`).

    Observations, rewards, ends and random numbers are those of the package, which is asked for the channels and the
    actions only.
    """

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
        self._sticky, self._max_steps = sticky_action_prob, max_episode_steps
        package: Any = load_game(game).Env()
        self.channels: dict[str, int] = package.channels
        actions = package.minimal_action_set() if minimal_actions else list(range(6))
        self._num_actions = len(actions)
        self._actions = np.array([*actions, *[ILLEGAL] * len(actions)])  # -1 to -n are the n last ones
        self._streams = RandomStreams(num_envs)
        self._rules = GAMES[game](num_envs, self._streams, difficulty_ramping)
        self._last_action = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, bool)  # the next step resets
        self._all = np.arange(num_envs)
        self.obs = {"obs": self._rules.obs}
        self.tally = EpisodeTally(num_envs)
        rules = f"sticky {sticky_action_prob:g}, {'' if difficulty_ramping else 'no '}difficulty ramping"
        self.spec = EnvSpec(
            name=f"minatar/{game}",
            obs={"obs": Leaf(self._rules.obs.shape[1:], "bool")},
            actions={"action": ActionLeaf((), "int64", "discrete", (self._num_actions,))},
            max_episode_steps=max_episode_steps,
            protocol=f"minatar {'v1' if minimal_actions else 'v0'}, {self._num_actions} actions, {rules}",
        )
        for env, seed in enumerate(self.seeds):
            self._streams.seed(env, seed)
        self._rules.reset(self._all)

    def reset(self) -> dict[str, np.ndarray]:
        """Reset every game that has made a step. New games are already reset, so the first call only observes."""
        envs = (self._over | (self.tally.lengths > 0)).nonzero()[0]
        if envs.size:
            self._rules.reset(envs)
            self._over[envs] = False
            self.tally.drop(envs.tolist())
        self._rules.draw()
        return self.obs

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step every game; `action` [E] int64. A stream gives a sticky action's number first, as in the package."""
        chosen = self._package_actions(action["action"])
        playing = (chosen >= 0) > self._over
        all_play = np.count_nonzero(playing) == self.num_envs
        self._choose(chosen, self._all if all_play else playing.nonzero()[0])
        reward, end = self._rules.act(self._last_action, playing)
        faults: tuple[EnvFault, ...] = ()
        if not all_play:
            reward *= playing
            end &= playing
            faults = self._restart(action["action"], chosen < 0)
        self._rules.draw()
        self.tally.count(reward, playing)
        terminated, truncated = self._ends(end)
        over = self._over = terminated | truncated
        ended = over.nonzero()[0].tolist()
        episodes = self.tally.end(ended) if ended else ()
        return Step(self.obs, reward, terminated, truncated, playing, ~playing, episodes, faults)

    def _package_actions(self, rows: np.ndarray) -> np.ndarray:
        """Return the package's numbers of the actions, [E] int64; -1 for one that is not legal."""
        try:
            return self._actions.take(rows)
        except (IndexError, TypeError):  # far out of range, or not integers
            legal = np.isin(rows, np.arange(self._num_actions))  # NaN and fractions are not
            return np.where(legal, self._actions.take(np.where(legal, rows, 0).astype(np.int64)), ILLEGAL)

    def _choose(self, chosen: np.ndarray, envs: np.ndarray) -> None:
        """Store the action of each playing game: the chosen one or, by chance, the one before. It outlives a reset."""
        if envs.size:
            new = envs[self._streams.uniforms(envs) >= self._sticky]
            self._last_action[new] = chosen[new]

    def _restart(self, rows: np.ndarray, illegal: np.ndarray) -> tuple[EnvFault, ...]:
        """Reset the games whose episode was over; replace those with an illegal action by games with a new seed."""
        faults = []
        for env in (illegal > self._over).nonzero()[0].tolist():  # a reset step ignores its action
            error = ValueError(f"illegal action {rows.tolist()[env]}: actions are 0 to {self._num_actions - 1}")
            faults.append(env_fault(env, error, self.seeds[env], int(self.tally.lengths[env])))
            self.seeds[env] = next_seed(self.seeds[env])
            self._streams.seed(env, self.seeds[env])
            self._last_action[env], self._over[env] = 0, True
            self.tally.drop(env)
        self._rules.reset(self._over.nonzero()[0])
        return tuple(faults)

    def _ends(self, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Split ends into terminations and truncations, both [E] bool."""
        never = np.zeros(self.num_envs, bool)
        terminated, truncated = (never, ended) if self.game in ENDS_BY_CLOCK else (ended, never)
        if self._max_steps:
            truncated = truncated | (self.tally.lengths >= self._max_steps) & ~terminated
        return terminated, truncated

    render_fps = FPS

    def render(self, env: int) -> np.ndarray:
        """Render the observation, one pixel per cell, uint8 [10, 10, 3]."""
        channels, cells = self.channels, self.obs["obs"][env]
        picture = np.full((*cells.shape[:2], 3), BACKGROUND, np.uint8)
        for name in sorted(channels, key=list(COLOURS).index):
            picture[cells[..., channels[name]]] = COLOURS[name]
        return picture

    def snapshot(self) -> Any:
        """Return the state as JSON: games, random numbers, sticky actions, the tally."""
        group = [self.seeds, self._last_action, self._over, self.tally.returns, self.tally.lengths]
        parts = {"rules": self._rules.snapshot(), "random": self._streams.snapshot(), "group": group}
        return {name: encode(part) for name, part in parts.items()}

    def restore(self, state: Any) -> None:
        """Load the state of `snapshot` into a group that was built with the same settings."""
        if "rules" not in state:
            raise EnvError(f"{self.spec.name}: saved by an earlier version, which stepped the package's own games")
        group = decode(state["group"])
        self.seeds, self._last_action, self._over, self.tally.returns, self.tally.lengths = group
        self._rules.restore(decode(state["rules"]))
        self._streams.restore(decode(state["random"]))
        self._rules.draw()

    def close(self) -> None:
        """Do nothing: games are arrays."""


def raw_loop(env_id: str, num_envs: int, seed: int, **settings: Any) -> Callable[[], int]:
    """Return a plain loop over the package's own act, state and reset.

    The roofline and comparisons stand on it: it is the package as its users step it, whatever our own rules cost.
    """
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
