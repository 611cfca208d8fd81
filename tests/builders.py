"""Small trained runs and a nested environment, shared by tests."""

from dataclasses import replace

import gymnasium
import numpy as np
from gymnasium import spaces

import sfactory
from sfactory.envs import registry as envs
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.supervisor import train as training

TINY = {
    "run": {"mode": "lockstep"},
    "stop": {"env_steps": 600},
    "sampling": {"num_samplers": 1, "envs_per_group": 4, "rollout_length": 16},
    "batch": {"minibatches": 1},
    "log": {"quiet": True},
}


def trained(folder, target, **sections):
    """Train a tiny run in `folder` and return the folder."""
    merged = {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}}
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


def train_nested(folder, monkeypatch, **sections):
    """Train a tiny run with `Nested` in `folder` and return the folder."""

    def make(env_id, *, num_envs, seeds, **settings):
        return EnvGroup(Nested, num_envs, seeds, name=f"nested/{env_id}")

    real = envs.load_family
    monkeypatch.setattr(envs, "load_family", lambda name: make if name == "nested" else real(name))
    config = sfactory.make_config("gymnasium/CartPole-v1", **{**TINY, "checkpoint": {"exact": False}, **sections})
    outcome = training.train(replace(config, env=replace(config.env, name="nested/one")), folder)
    assert outcome.code == 0, outcome.sentence
    return folder
