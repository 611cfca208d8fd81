"""The turn-based games of envpool, in C++: `envpool/ConnectFour-v1`, `envpool/Othello-v1`, `envpool/Backgammon-v1`.

Every player is an agent with rows of its own (`sfactory.envs.agent_group` has the table). A player acts when it is its
turn; legal moves are the action mask. Which player begins is drawn by the game.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sfactory.envs import ActionLeaf, EnvError, EnvFault, EnvSpec, Episode, Leaf, Settings, Step, finite_rows
from sfactory.envs.agent_group import ACTING
from sfactory.envs.agent_spaces import AGENT_ID, MASK
from sfactory.envs.obs_leaf import obs_leaf


class GameGroup:
    """Group of E games with A players: E x A rows, row `game * A + player`."""

    at_once = True

    def __init__(
        self, task: str, num_envs: int, seeds: Sequence[int], threads: int, settings: Settings, agent_id: bool = False
    ) -> None:
        import envpool

        self.task, self.num_envs, self.seeds = task, num_envs, [seed % 2**31 for seed in seeds]
        self.env: Any = envpool.make_gymnasium(
            task, num_envs=num_envs, seed=self.seeds, num_threads=threads, **settings
        )
        self.observation_space, self.action_space = _as_grid(self.env.observation_space), self.env.action_space
        name, config = f"envpool/{task}", self.env.spec.config
        self.players = int(config.max_num_players)
        self._reader = obs_leaf("obs", (), self.observation_space)
        choices = int(self.action_space.n)
        self.agents = tuple(f"player_{number}" for number in range(self.players))
        obs = {"obs": self._reader.leaf, MASK: Leaf((choices,), "bool"), ACTING: Leaf((), "bool")}
        if agent_id:
            obs[AGENT_ID] = Leaf((self.players,), "bool")
        limit = int(config.max_episode_steps)
        self.spec = EnvSpec(
            name, obs, {"action": ActionLeaf((), "int64", "discrete", (choices,))},
            max_episode_steps=limit if limit < 2**31 - 1 else None,
            protocol=", ".join(["envpool", task, *(f"{key}={settings[key]}" for key in sorted(settings))]),
            mask=MASK, agents=self.agents, acting=ACTING,
        )  # fmt: skip
        self.rows = num_envs * self.players
        self._first_of = np.arange(num_envs) * self.players
        self.obs = {leaf: np.zeros((self.rows, *spec.shape), spec.dtype) for leaf, spec in obs.items()}
        if agent_id:
            self.obs[AGENT_ID][...] = np.tile(np.eye(self.players, dtype=bool), (num_envs, 1))
        self.current = np.zeros(num_envs, np.int64)
        self.returns, self.lengths = np.zeros((num_envs, self.players)), np.zeros(num_envs, np.int64)
        self._ended = np.zeros(num_envs, bool)  # the next step resets these

    def reset(self) -> dict[str, np.ndarray]:
        """Reset every game."""
        obs, info = self.env.reset()
        self._ended[:] = False
        self.returns[:], self.lengths[:] = 0, 0
        self._take(obs, info)
        return self.obs

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step every game with the action of the player whose turn it is."""
        acting = self.obs[ACTING].copy()
        chosen = np.asarray(action["action"]).reshape(self.rows)[self._first_of + self.current]
        legal = self.obs[MASK][self._first_of + self.current, np.clip(chosen, 0, self.action_space.n - 1)]
        legal &= (chosen >= 0) & (chosen < self.action_space.n)
        if not (legal | self._ended).all():
            return self._reset_all(~(legal | self._ended), f"illegal action {chosen[~legal].tolist()}")
        obs, reward, terminated, truncated, info = self.env.step(chosen.astype(self.action_space.dtype))
        reset, self._ended = self._ended, terminated | truncated
        rewards = np.asarray(reward, np.float32).reshape(self.num_envs, self.players)
        rewards = np.where(reset[:, None], 0, rewards)
        self._take(obs, info)
        if finite_rows(self.obs, rewards) is not None:
            return self._reset_all(np.ones(self.num_envs, bool), "NaN or infinity in the observation or reward")
        self.returns += rewards
        self.lengths += ~reset
        over = np.flatnonzero(self._ended).tolist()
        episodes = tuple(Episode(env, float(self.returns[env].mean()), int(self.lengths[env])) for env in over)
        infos = tuple(
            (env, {f"return_{name}": float(x) for name, x in zip(self.agents, self.returns[env], strict=True)})
            for env in over
        )
        self.returns[over], self.lengths[over] = 0, 0
        each = np.repeat
        return Step(
            self.obs, rewards.reshape(-1), each(terminated, self.players), each(truncated, self.players), acting,
            each(reset, self.players), episodes, (), infos,
        )  # fmt: skip

    def close(self) -> None:
        """Delete the games; envpool's own close() does nothing."""
        self.env = None

    def _take(self, obs: Any, info: Any) -> None:
        """Take observations [E x A, ...] and whose turn it is."""
        values = np.asarray(obs)
        self.obs["obs"][...] = values if self._reader.encode is None else self._reader.encode(values)
        self.current = np.asarray(info["current_player"], np.int64).clip(0, self.players - 1)
        self.obs[ACTING][:] = False
        self.obs[ACTING][self._first_of[~self._ended] + self.current[~self._ended]] = True
        mask = np.repeat(np.asarray(info["legal_action_mask"], bool), self.players, axis=0)
        mask[~mask.any(axis=1)] = True  # the game is over: no choice
        self.obs[MASK][...] = mask

    def _reset_all(self, wrong: np.ndarray, reason: str) -> Step:
        """Reset every game and report a fault; native code cannot replace a single one."""
        faults = tuple(
            EnvFault(
                env, f"{reason} (seed {self.seeds[env]}, step {self.lengths[env]} of the episode); the group was reset"
            )
            for env in np.flatnonzero(wrong).tolist()
        )
        never = np.zeros(self.rows, bool)
        return Step(self.reset(), np.zeros(self.rows, np.float32), never, never, never, ~never, (), tuple(faults))


def is_game(task: str) -> bool:
    """Whether players take turns in this task of envpool. Raises EnvError for other tasks of several players."""
    import envpool

    spec = envpool.make_spec(task)
    if spec.config.max_num_players == 1:
        return False
    if "info:current_player" not in spec.state_array_spec:
        raise EnvError(f"envpool/{task} has {spec.config.max_num_players} players that act together; not supported")
    return True


def raw_loop(task: str, num_envs: int, seed: int, threads: int, settings: Settings) -> Callable[[], int]:
    """Return a plain loop over envpool with legal random moves; each call steps every game once.

    It returns the number of moves: a game that has ended is reset by the next call.
    """
    group = GameGroup(task, num_envs, range(seed, seed + num_envs), threads, settings)
    env, generator, turn = group.env, np.random.default_rng(seed), itertools.count()
    _, info = env.reset()
    over = 0
    noise = generator.random((64, num_envs, int(group.action_space.n)))

    def step() -> int:
        nonlocal info, over
        moves = (noise[next(turn) % 64] + info["legal_action_mask"]).argmax(axis=1)
        _, _, terminated, truncated, info = env.step(moves.astype(group.action_space.dtype))
        reset, over = over, int(np.count_nonzero(terminated | truncated))
        return num_envs - reset

    return step


def _as_grid(space: Any) -> Any:
    """A board of planes [H, W, C] of bits as a picture, so that a convolution can read it; other spaces as they are."""
    from gymnasium import spaces

    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 3:
        return spaces.Box(0, 1, space.shape, bool)
    return space
