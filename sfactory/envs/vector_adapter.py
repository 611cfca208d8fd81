"""Adapter from native vector environments (ale-py, envpool) to a Group.

A family inherits from VectorGroup and implements `begin` and `advance`; spaces, checks and the counting of episodes
are here. After an illegal action or non-finite data, a fault is reported and all environments of the group are reset,
because native code cannot replace a single one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sfactory.envs.action_leaf import ActionSpace, mask_leaf
from sfactory.envs.obs_leaf import always_fits, obs_leaves
from sfactory.envs.space_leaves import check_tuples, kept_leaves, part_of, tuples_of
from sfactory.envs.spec import EnvFault, EnvSpec, EpisodeTally, Step, finite_rows


class Native(NamedTuple):
    """Result of one step of native code; every array is [E]."""

    obs: Any  # an array [E, ...] or a dict of them
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    reset: np.ndarray  # this step was a reset; the action was ignored
    over: np.ndarray  # a complete episode has ended
    life_lost: np.ndarray  # terminated by a lost life; the next row is an ordinary one that begins an episode


class VectorGroup(ABC):
    """Base class of groups for native vector environments under next-step autoreset."""

    at_once = True
    """Whether native code steps all environments in one call, which then has the time of one step."""

    def __init__(
        self, name: str, observation_space: Any, action_space: Any, num_envs: int, seeds: Sequence[int], *,
        frame_skip: int = 1, protocol: str = "", max_episode_steps: int | None = None,
        reward_threshold: float | None = None, reference: tuple[float, float] | None = None, drop: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.num_envs, self.seeds = num_envs, list(seeds)
        self.observation_space, self.action_space = observation_space, action_space  # of one environment
        self._readers, omitted = obs_leaves(name, kept_leaves(name, observation_space, drop))
        self._tuples = tuple(tuples_of(observation_space))
        self._actions = ActionSpace(name, action_space)
        obs, actions = {n: reader.leaf for n, reader in self._readers.items()}, self._actions.leaves
        self.spec = EnvSpec(
            name, obs, actions, frame_skip, max_episode_steps, protocol or name, reward_threshold,
            mask_leaf(name, obs, actions), reference, omitted,
        )  # fmt: skip
        self.tally = EpisodeTally(num_envs)
        self._never = np.zeros(num_envs, bool)

    @abstractmethod
    def begin(self) -> Any:
        """Reset every environment and return the observations. The first call uses the seeds, later calls do not."""

    @abstractmethod
    def advance(self, action: Any) -> Native:
        """Step every environment. action: array [E, ...], or a dict of arrays if there are several action leaves."""

    def reset(self) -> dict[str, np.ndarray]:
        self.tally = EpisodeTally(self.num_envs)
        return self._read(self.begin())

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step every environment; see the table in `sfactory.envs.spec`."""
        native_action, illegal = self._native_action(action)
        if illegal.any():
            return self._reset_all(illegal, f"illegal action {[a[illegal].tolist() for a in action.values()]}")
        native = self.advance(native_action)
        obs = self._read(native.obs)
        reward = self._rewards(native.reward)
        if (finite := finite_rows(obs, reward)) is not None:
            return self._reset_all(~finite, "NaN or infinity in the observation or reward")
        valid = ~native.reset
        self.tally.count(reward, valid)
        episodes = self.tally.end(np.flatnonzero(native.over).tolist())
        first = native.reset | native.life_lost
        return Step(obs, reward, native.terminated, native.truncated, valid, first, episodes, ())

    @abstractmethod
    def close(self) -> None: ...

    def _reset_all(self, rows: np.ndarray, reason: str) -> Step:
        """Reset every environment and report a fault for `rows`; the state of native code is unknown after one."""
        lengths = self.tally.lengths
        faults = tuple(
            EnvFault(env, f"{reason} (seed {self.seeds[env]}, step {lengths[env]} of the episode); the group was reset")
            for env in np.flatnonzero(rows).tolist()
        )
        obs, never = self.reset(), self._never
        return Step(obs, np.zeros(self.num_envs, np.float32), never, never, never, ~never, (), faults)

    def _rewards(self, reward: Any) -> np.ndarray:
        """Rewards as float32, [E]. Raises ValueError for another number of them."""
        rewards = np.asarray(reward, np.float32)
        if rewards.shape != (self.num_envs,):
            if rewards.size != self.num_envs:
                raise ValueError(f"the rewards have shape {rewards.shape}, expected {(self.num_envs,)}")
            rewards = rewards.reshape(self.num_envs)
        return rewards

    def _read(self, raw: Any) -> dict[str, np.ndarray]:
        """Convert native observations to leaves of the spec's dtypes. Raises ValueError for a wrong shape or dtype."""
        obs = {}
        check_tuples(raw, self._tuples)
        for name, reader in self._readers.items():
            leaf, value = reader.leaf, np.asarray(part_of(raw, reader.path))
            if value.shape != (self.num_envs, *reader.raw):
                raise ValueError(f"{name} has shape {value.shape}, but its space has {(self.num_envs, *reader.raw)}")
            if reader.encode is not None:
                value = reader.encode(value)
            if value.dtype != leaf.dtype:
                always_fits(name, value, np.dtype(leaf.dtype))
                value = value.astype(leaf.dtype)
            obs[name] = value
        return obs

    def _native_action(self, action: dict[str, np.ndarray]) -> tuple[Any, np.ndarray]:
        """Convert actions for native code, clipped to their bounds; also return which rows are illegal, [E] bool."""
        illegal = self._never.copy()
        arrays = self._actions.arrays(action, illegal)
        if not self._actions.nested:
            return arrays[0], illegal
        paths = ("/".join(map(str, part.path)) for part in self._actions.parts)
        return dict(zip(paths, arrays, strict=True)), illegal
