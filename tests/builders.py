"""Small trained runs and a nested environment, shared by tests."""

import gymnasium
import numpy as np
from gymnasium import spaces

import sfactory
from sfactory.supervisor import train as training

TINY = {
    "run": {"mode": "lockstep"},
    "stop": {"env_steps": 600},
    "sampling": {"num_samplers": 1, "envs_per_group": 4, "rollout_length": 16},
    "batch": {"minibatches": 1},
    "log": {"quiet": True},
}

SHORT = {
    "stop": {"env_steps": 2000},
    "sampling": {"num_samplers": 2, "envs_per_group": 4, "rollout_length": 16},
    "batch": {"minibatches": 2},
    "log": {"quiet": True},
}
"""Sections of a short run of two samplers."""
LOCKSTEP = {**SHORT, "run": {"mode": "lockstep"}, "stop": {"env_steps": 300}}
"""The same in one process, for a few updates."""

NO_LOCKS = ("ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL")
"""Names of what flock fails with on a file system without locks."""


MY_ENV = """
import gymnasium, numpy as np
from gymnasium import spaces

CALLS = []

class MyEnv(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}
    def step(self, action):
        self.t += 1
        return np.full(3, 0.1, np.float32), 1.0, False, self.t >= 20, {}
"""
"""A file with an environment of the user's own."""


def trained(folder, target, **sections):
    """Train a tiny run in `folder` and return the folder."""
    from forked_processes import forked_workers  # imports torch, which processes with environments of this file do not

    merged = {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}}
    with forked_workers():
        outcome = training.train(sfactory.make_config(target, **merged), folder)
    assert outcome.code == 0, outcome.sentence
    return folder


class Nested(gymnasium.Env):
    """Environment with Dict observations (Box, Discrete, image) and a Dict action whose Discrete starts at 5."""

    observation_space = spaces.Dict(
        {
            "vector": spaces.Box(-1, 1, (3,), np.float64),
            "which": spaces.Discrete(4, start=2),
            "image": spaces.Box(0, 255, (6, 6, 2), np.uint8),
        }
    )
    action_space = spaces.Dict({"go": spaces.Discrete(3, start=5), "push": spaces.Box(-0.5, 0.5, (2,), np.float32)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps_left = 5
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps_left -= 1
        return self.observation_space.sample(), float(action["go"]), self.steps_left == 0, False, {}


class Everything(Nested):
    """`Nested` with leaves of every kind that can be read."""

    observation_space = spaces.Dict(
        last=spaces.Box(0, 255, (12, 13, 3), np.uint8),
        grey=spaces.Box(0, 1, (20, 24)),
        frames=spaces.Box(0, 255, (2, 12, 12, 3), np.float32),
        averaged=spaces.Box(0, 255, (161, 40), np.uint8),
        ram=spaces.Box(0, 255, (16,), np.uint8),
        count=spaces.Box(0, 10**6, (), np.int64),
        one=spaces.Box(-1, 1, ()),
        own=spaces.Box(np.array([0, -5]), np.array([9, 10**9]), dtype=np.int64),
        grid=spaces.Box(0, 10, (3, 7, 7), np.uint8),
    )


class Odd(gymnasium.Env):
    """Environment with a text in its observation, and actions of unusual shapes and types."""

    observation_space = spaces.Dict(mission=spaces.Text(9), x=spaces.Box(-1, 1, (3,), np.float32))
    action_space = spaces.Dict(
        {
            "bits": spaces.MultiBinary((2, 2)),
            "empty": spaces.Box(-1, 1, (0,), np.float32),
            "force": spaces.Box(-0.5, 0.5, (), np.float32),
            "level": spaces.Box(-3, 3, (1,), np.int16),
            "table": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -5]]),
        }
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps_left = 5
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps_left -= 1
        return self.observation_space.sample(), float(action["force"]), self.steps_left == 0, False, {}


class Parts(Nested):
    """`Nested` with a Tuple of two equal Boxes, a Dict and a text, and as many choices as a setting says."""

    observation_space = spaces.Tuple(
        (
            spaces.Box(-1, 1, (2,)),
            spaces.Box(-1, 1, (2,)),
            spaces.Dict(which=spaces.Discrete(3), x=spaces.Box(-1, 1, (1,))),
            spaces.Text(5),
        )
    )

    def __init__(self, sizes=(2, 3)):
        self.action_space = spaces.MultiDiscrete(list(sizes))

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps_left -= 1
        return self.observation_space.sample(), float(action[0]), self.steps_left == 0, False, {}


for one in (Nested, Everything, Odd, Parts):  # in this file, which the processes of a run import
    gymnasium.register(f"{one.__name__}-v0", entry_point=one)


def train_own(folder, cls, **sections):
    """Train a tiny run with a class of this file in `folder` and return the folder."""
    return trained(folder, f"gymnasium/builders:{cls.__name__}-v0", checkpoint={"exact": False}, **sections)


def train_parts(folder, **sections):
    """Train a tiny run with `Parts` in `folder`, without its text, and return the folder."""
    return train_own(folder, Parts, **{**sections, "env": {"drop": "3", **sections.get("env", {})}})


def train_odd(folder):
    """Train a tiny run with `Odd` in `folder`, without its text, and return the folder."""
    return train_own(folder, Odd, env={"drop": "mission"})
