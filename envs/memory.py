"""Tasks that need memory: `memory/tmaze` and `memory/cartpole`. They need a recurrent core.

tmaze       A corridor. Only the first observation shows which way to turn at its end, `length` steps later. The correct
            turn gives +1, the other one -1, so the mean return of a policy without memory is at most 0. An action that
            does not move costs 0.1 (Bakker 2002, "Reinforcement learning with long short-term memory").
cartpole    CartPole-v1 without its two velocities (Meuleau et al. 1999); the policy must estimate them.

Episodes are truncated after 500 steps, and both tasks support exact resume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.wrappers import TimeLimit

from sfactory.envs import EnvError, suggest
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.envs.saved_state import plain_attributes, set_attributes

FORWARD, LEFT, RIGHT = range(3)
LIMIT = 500
SPACES = ("spec", "action_space", "observation_space", "metadata", "render_mode", "screen", "surf", "clock")


class TMaze(gymnasium.Env[np.ndarray, int]):
    """Corridor with a junction. Observation [3] float32: cue (-1, 1; 0 after the first step), at junction, 1."""

    def __init__(self, length: int = 10) -> None:
        if length < 1:
            raise ValueError(f"length must be >= 1 (got {length})")
        self.length = length
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.side = self.place = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.side, self.place, self.steps = int(self.np_random.integers(2)), 0, 0
        return np.array([2 * self.side - 1, 0, 1], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        turned, at_junction = action != FORWARD, self.place == self.length
        reward = 0.0
        if at_junction and turned:
            reward = 1.0 if action == (LEFT, RIGHT)[self.side] else -1.0
        elif at_junction or turned:
            reward = -0.1
        else:
            self.place += 1
        obs = np.array([0, self.place == self.length, 1], np.float32)
        return obs, reward, at_junction and turned, self.steps >= LIMIT, {}

    def snapshot(self) -> Any:
        return plain_attributes(self, SPACES)

    def restore(self, state: Any) -> None:
        set_attributes(self, state)


class BlindCartPole(CartPoleEnv):
    """CartPole without velocities. Observation [2] float32: position and angle."""

    def __init__(self) -> None:
        super().__init__()
        full = self.observation_space
        assert isinstance(full, spaces.Box)
        self.observation_space = spaces.Box(full.low[::2], full.high[::2], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return super().reset(seed=seed, options=options)[0][::2], {}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs[::2], reward, terminated, truncated, info

    def snapshot(self) -> Any:
        return plain_attributes(self, SPACES)

    def restore(self, state: Any) -> None:
        set_attributes(self, state)


def ids() -> tuple[str, ...]:
    """List the tasks."""
    return "tmaze", "cartpole"


def make(env_id: str, *, num_envs: int, seeds: Sequence[int], length: int = 10) -> EnvGroup:
    """Build a group of one task. length: steps between cue and junction (tmaze)."""
    builders: dict[str, Callable[[], gymnasium.Env[np.ndarray, Any]]] = {
        "tmaze": lambda: TMaze(length),
        "cartpole": lambda: TimeLimit(BlindCartPole(), LIMIT),
    }
    if env_id not in builders:
        raise EnvError(f"memory has no task {env_id!r}{suggest(env_id, builders)}")
    protocol = f"tmaze, corridor of {length}" if env_id == "tmaze" else "CartPole-v1 without velocities"
    return EnvGroup(
        builders[env_id], num_envs, seeds, name=f"memory/{env_id}", protocol=protocol, max_episode_steps=LIMIT
    )
