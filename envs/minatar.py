"""MinAtar (Young & Tian 2019, arXiv 1903.03176): `minatar/breakout`, asterix, freeway, seaquest, space_invaders.

The `-v0` task of the paper: six actions, sticky actions 0.1, difficulty ramping. The game's file is loaded by its path:
importing `minatar` itself costs 1.5 s and 157 MB (it imports seaborn). What `minatar.Environment.act` does around a game,
the sticky action, is done here with the same draws from the same generator, so the two agree frame by frame.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sfactory.envs import ActionLeaf, EnvError, EnvFault, EnvSpec, Episode, Leaf, Step, suggestion

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
NUM_ACTIONS = 6
PROTOCOL = "v0"


def _load_game(game: str) -> ModuleType:
    package = importlib.machinery.PathFinder.find_spec("minatar")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'minatar'", name="minatar")
    path = Path(package.origin).parent / "environments" / f"{game}.py"
    spec = importlib.util.spec_from_file_location(f"minatar_game_{game}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class MinAtarGroup:
    """E games in one Python loop, 2 us each. Observations [E, 10, 10, C] bool."""

    def __init__(
        self,
        game: str,
        num_envs: int,
        seeds: Sequence[int],
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
        minimal_actions: bool = False,
        max_episode_steps: int | None = None,
    ) -> None:
        if game not in GAMES:
            raise EnvError(f"minatar/ has no game {game!r}{suggestion(game, GAMES)}; it has {', '.join(GAMES)}")
        if not 0.0 <= sticky_action_prob <= 1.0:
            raise EnvError(f"env.settings.sticky-action-prob is {sticky_action_prob}, expected 0 to 1")
        module = _load_game(game)
        self.num_envs, self.sticky, self.limit = num_envs, sticky_action_prob, max_episode_steps
        self.games: list[Any] = [module.Env(ramping=difficulty_ramping) for _ in range(num_envs)]
        for env, seed in zip(self.games, seeds, strict=True):
            env.random = np.random.RandomState(seed)  # one generator for game and stickiness, as Environment.seed does
        self.action_map = list(range(NUM_ACTIONS))
        if minimal_actions:
            self.action_map = [int(a) for a in self.games[0].minimal_action_set()]
        shape = tuple(int(n) for n in self.games[0].state_shape())
        standard = sticky_action_prob == 0.1 and difficulty_ramping
        protocol = ("v1" if minimal_actions else PROTOCOL) if standard else f"sticky {sticky_action_prob:g}, ramping {difficulty_ramping}"
        self.spec = EnvSpec(
            f"minatar/{game}",
            {"obs": Leaf(shape, "bool")},
            {"action": ActionLeaf((), "int64", "discrete", (len(self.action_map),))},
            max_episode_steps=max_episode_steps,
            protocol=protocol,
        )
        self.obs = np.zeros((num_envs, *shape), bool)
        self.pending = [False] * num_envs  # the next step is the reset step
        self.last = [0] * num_envs  # the last action; it survives a reset, as in the package
        self.returns, self.lengths = [0.0] * num_envs, [0] * num_envs

    def reset(self) -> dict[str, np.ndarray]:
        for i, game in enumerate(self.games):
            game.reset()
            self.obs[i] = game.state()
        return {"obs": self.obs}

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        # One pass over plain Python lists: numpy scalars would cost more than the game.
        n, obs, sticky, last, pending = self.num_envs, self.obs, self.sticky, self.last, self.pending
        returns, lengths, limit, actions = self.returns, self.lengths, self.limit, self.action_map
        wanted = action["action"].tolist()
        reward, ended, cut, valid = [0.0] * n, [False] * n, [False] * n, [True] * n
        episodes: list[Episode] = []
        faults: list[EnvFault] = []
        for i, game in enumerate(self.games):
            if pending[i]:
                pending[i], valid[i] = False, False
                game.reset()
                obs[i] = game.state()
                continue
            choice = wanted[i]
            if not 0 <= choice < len(actions):
                faults.append(EnvFault(i, f"action {choice} is out of range; it was not passed on, the game begins anew"))
                valid[i], returns[i], lengths[i] = False, 0.0, 0
                game.reset()
                obs[i] = game.state()
                continue
            choice = actions[choice]
            if game.random.rand() < sticky:
                choice = last[i]
            last[i] = choice
            gain, over = game.act(choice)
            obs[i] = game.state()
            lengths[i] += 1
            if gain:
                reward[i] = gain
                returns[i] += gain
            late = limit is not None and lengths[i] >= limit and not over
            if over or late:
                episodes.append(Episode(i, float(returns[i]), lengths[i]))
                ended[i], cut[i], pending[i] = bool(over), late, True
                returns[i], lengths[i] = 0.0, 0
        flags = np.array(valid)
        return Step(
            {"obs": obs}, np.array(reward, np.float32), np.array(ended), np.array(cut), flags, ~flags,
            tuple(episodes), tuple(faults),
        )  # fmt: skip

    def close(self) -> None:
        pass


def make(env_id: str, *, num_envs: int, seeds: Sequence[int], **settings: Any) -> MinAtarGroup:
    """Settings: sticky_action_prob, difficulty_ramping, minimal_actions, max_episode_steps."""
    return MinAtarGroup(env_id, num_envs, seeds, **settings)
