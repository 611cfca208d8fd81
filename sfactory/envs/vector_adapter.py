"""Environments that step many games in one call of native code (ale-py, envpool) as a Group.

A family inherits from VectorGroup and says how its games begin and step; spaces, guards and the counting of games are
here. What cannot be mended for one environment alone (NaN from native code, an illegal action) is reported as a fault
and every game of the group begins anew, on reset rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sfactory.envs import EnvFault, EnvSpec, Step, Tally, finite_rows
from sfactory.envs.gymnasium_adapter import action_leaf, mask_leaf, obs_leaf, space_leaves


class Native(NamedTuple):
    """What one call of native code returned. All [E]."""

    obs: Any  # an array [E, ...] or a dict of them
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    reset: np.ndarray  # this step was a reset: the action was ignored
    over: np.ndarray  # a whole game has ended, and its return is complete
    life_lost: np.ndarray  # terminated, and the game goes on: the next row is an ordinary one that begins an episode


class VectorGroup(ABC):
    """Implements `sfactory.envs.Group` for a native vector environment under next-step autoreset."""

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
        self.tally = Tally(num_envs)
        self._never = np.zeros(num_envs, bool)

    @abstractmethod
    def begin(self) -> Any:
        """Begin every game; returns the observations. The first time with the seeds, later without."""

    @abstractmethod
    def advance(self, action: Any) -> Native:
        """Step every game. action: an array [E, ...], or a dict of them where the action space has several leaves."""

    def reset(self) -> dict[str, np.ndarray]:
        self.tally = Tally(self.num_envs)
        return self._read(self.begin())

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """One step of every game; see the table at the top of `sfactory.envs`."""
        given, illegal = self._given(action)
        if illegal.any():
            return self._begin_anew(illegal, f"illegal action {[a[illegal].tolist() for a in action.values()]}")
        native = self.advance(given)
        obs = self._read(native.obs)
        reward = np.asarray(native.reward, np.float32)
        if (finite := finite_rows(obs, reward)) is not None:
            return self._begin_anew(~finite, "NaN or infinity in the observation or reward")
        valid = ~native.reset
        self.tally.count(reward, valid)
        episodes = self.tally.end(np.flatnonzero(native.over).tolist())
        first = native.reset | native.life_lost
        return Step(obs, reward, native.terminated, native.truncated, valid, first, episodes, ())

    @abstractmethod
    def close(self) -> None: ...

    def _begin_anew(self, rows: np.ndarray, why: str) -> Step:
        """Every game is lost: nobody can say what native code does with the others after that."""
        lengths = self.tally.lengths
        faults = tuple(
            EnvFault(env, f"{why} (seed {self.seeds[env]}, step {lengths[env]} of the episode); the group begins anew")
            for env in np.flatnonzero(rows).tolist()
        )
        obs, never = self.reset(), self._never
        return Step(obs, np.zeros(self.num_envs, np.float32), never, never, never, ~never, (), faults)

    def _read(self, raw: Any) -> dict[str, np.ndarray]:
        """Native observations as leaves of the promised dtypes."""
        obs = {}
        for (name, path, space), leaf in zip(self._leaves, self.spec.obs.values(), strict=True):
            value = raw
            for key in path:
                value = value[key]
            value = np.asarray(value)
            if value.shape[1:] != leaf.shape and value.ndim == 1:  # a category
                value = np.arange(leaf.shape[0]) == (value - getattr(space, "start", 0))[:, None]
            elif type(space).__name__ == "MultiBinary":  # of several dimensions; the leaf is flat
                value = value.reshape(self.num_envs, -1)
            if value.shape != (self.num_envs, *leaf.shape):
                raise ValueError(f"{name} has shape {value.shape}, its space says {(self.num_envs, *leaf.shape)}")
            obs[name] = value if value.dtype == leaf.dtype else value.astype(leaf.dtype)
        return obs

    def _given(self, action: dict[str, np.ndarray]) -> tuple[Any, np.ndarray]:
        """What native code gets, clipped to its bounds, and which rows are illegal."""
        illegal, given = self._never.copy(), {}
        for name, path, space in self._actions:
            values, leaf = action[name], self.spec.actions[name]
            if leaf.kind == "box":  # the learner keeps the unclipped sample: its log_prob is of that one
                legal = np.isfinite(values)
                values = np.clip(values, space.low, space.high)
            else:
                legal = (values >= 0) & (values < np.asarray(leaf.sizes).reshape(leaf.shape))
                values = values + getattr(space, "start", 0)
            if not legal.all():
                illegal |= ~legal.reshape(self.num_envs, -1).all(axis=1)
            given[path] = values.astype(space.dtype, copy=False)
        if () in given:
            return given[()], illegal
        return {"/".join(map(str, path)): values for path, values in given.items()}, illegal
