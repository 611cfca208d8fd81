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

from sfactory.envs.action_leaf import action_leaf, mask_leaf
from sfactory.envs.obs_leaf import obs_leaf
from sfactory.envs.space_leaves import space_leaves
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
        reward_threshold: float | None = None, reference: tuple[float, float] | None = None,
    ) -> None:  # fmt: skip
        self.num_envs, self.seeds = num_envs, list(seeds)
        self.observation_space, self.action_space = observation_space, action_space  # of one environment
        self._leaves = [(n, path, s) for n, path, s in space_leaves(observation_space, "obs")]
        self._actions = [(n, path, s) for n, path, s in space_leaves(action_space, "action")]
        obs = {n: obs_leaf(n, path, s)[0] for n, path, s in self._leaves}
        actions = {n: action_leaf(n, s)[0] for n, _, s in self._actions}
        self.spec = EnvSpec(
            name, obs, actions, frame_skip, max_episode_steps, protocol or name, reward_threshold,
            mask_leaf(name, obs, actions), reference,
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
        reward = np.asarray(native.reward, np.float32)
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

    def _read(self, raw: Any) -> dict[str, np.ndarray]:
        """Convert native observations to leaves of the spec's dtypes."""
        obs = {}
        for (name, path, space), leaf in zip(self._leaves, self.spec.obs.values(), strict=True):
            value = raw
            for key in path:
                value = value[key]
            value = np.asarray(value)
            if value.shape[1:] != leaf.shape and value.ndim == 1:  # a category
                value = np.arange(leaf.shape[0]) == (value - getattr(space, "start", 0))[:, None]
            elif type(space).__name__ == "MultiBinary":  # may have several dimensions; the leaf is flat
                value = value.reshape(self.num_envs, -1)
            if value.shape != (self.num_envs, *leaf.shape):
                raise ValueError(f"{name} has shape {value.shape}, but its space has {(self.num_envs, *leaf.shape)}")
            obs[name] = value if value.dtype == leaf.dtype else value.astype(leaf.dtype)
        return obs

    def _native_action(self, action: dict[str, np.ndarray]) -> tuple[Any, np.ndarray]:
        """Convert actions for native code, clipped to their bounds; also return which rows are illegal, [E] bool."""
        illegal, converted = self._never.copy(), {}
        for name, path, space in self._actions:
            values, leaf = action[name], self.spec.actions[name]
            if leaf.kind == "box":  # the slot keeps the unclipped sample, because log_prob belongs to that one
                legal = np.isfinite(values)
                values = np.clip(values, space.low, space.high)
            else:
                legal = (values >= 0) & (values < np.asarray(leaf.sizes).reshape(leaf.shape))
                values = values + getattr(space, "start", 0)
            if not legal.all():
                illegal |= ~legal.reshape(self.num_envs, -1).all(axis=1)
            converted[path] = values.astype(space.dtype, copy=False)
        if () in converted:
            return converted[()], illegal
        return {"/".join(map(str, path)): values for path, values in converted.items()}, illegal
