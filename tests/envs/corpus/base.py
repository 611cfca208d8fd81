"""What every environment of the corpus has in common, and the table of what is expected of each.

An environment of the corpus is a class of a few lines and one `@case`:

    @case("obs: picture 32x32x3 uint8, channels last -> small CNN (cnn), scaled by 1/255")
    class HWC32(Task): obs = spaces.Box(0, 255, (32, 32, 3), np.uint8)
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium import spaces


@dataclass(frozen=True)
class Case:
    """What `check-env` and `train` must do with one environment."""

    target: str
    """FILE:CLASS, as it is typed."""
    lines: tuple[str, ...] = ()
    """Lines of the observation that both commands print."""
    code: int = 0
    """Exit code of `train`."""
    says: str = ""
    """Part of the last line of `train`, if its exit code is not 0."""
    flags: tuple[str, ...] = ()
    """Settings on the command line."""
    check: int | None = None
    """Exit code of `check-env`, where it differs from that of `train`."""


CASES: list[Case] = []


def case(*lines, code=0, says="", flags=(), check=None):
    """Add a class to the corpus; several times, with other flags, if need be."""

    def add(cls):
        CASES.append(Case(f"{cls.__module__}:{cls.__name__}", lines, code, says, tuple(flags), check))
        return cls

    return add


class Task(gymnasium.Env):
    """Twenty steps of random observations, with a reward of 1 for one action and 0 for the others."""

    obs = spaces.Box(-1, 1, (3,), np.float32)
    actions = spaces.Discrete(2)

    def __init__(self):
        self.observation_space, self.action_space = self.obs, self.actions

    def look(self):
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.look(), {}

    def reward(self, action):
        return float(np.asarray(action, object).ravel()[0] == 1) if np.size(action) else 0.0

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        return self.look(), self.reward(action), False, self.t >= 20, {}
