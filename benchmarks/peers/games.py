"""The workloads as gymnasium environments, for programs that want one environment at a time."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gymnasium
import numpy as np


class MinAtarGame(gymnasium.Env):
    """MinAtar v0 (six actions, sticky 0.1) without the package around it, which imports plotting libraries."""

    def __init__(self, game: str, channels_first: bool = False):
        folder = importlib.util.find_spec("minatar").submodule_search_locations[0]
        spec = importlib.util.spec_from_file_location(game, Path(folder) / "environments" / f"{game}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.game, self.first = module.Env(ramping=True), channels_first
        h, w, c = self.game.state_shape()
        self.observation_space = gymnasium.spaces.Box(0, 1, (c, h, w) if channels_first else (h, w, c), np.float32)
        self.action_space = gymnasium.spaces.Discrete(6)
        self.last = 0

    def _state(self):
        state = self.game.state().astype(np.float32)
        return np.moveaxis(state, 2, 0) if self.first else state

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.game.random = np.random.RandomState(seed % 2**31)
        self.game.reset()
        return self._state(), {}

    def step(self, action):
        if self.game.random.rand() < 0.1:
            action = self.last
        self.last = action
        reward, over = self.game.act(int(action))
        return self._state(), float(reward), bool(over), False, {}


class Whole(gymnasium.ObservationWrapper):
    """gymnasium 0.29 stacks lazily, and Sample Factory wants arrays."""

    def observation(self, observation):
        return np.asarray(observation)


def pong():
    """84 x 84 grey, four frames, four skipped, no sticky actions: the dqn protocol."""
    from gymnasium.wrappers import AtariPreprocessing

    try:
        from gymnasium.wrappers import FrameStackObservation as Stack
    except ImportError:  # gymnasium 0.29
        from gymnasium.wrappers import FrameStack as Stack
    # ale-py registers itself with gymnasium 1 alone; Sample Factory has 0.29
    rules = dict(game="pong", obs_type="rgb", frameskip=1, repeat_action_probability=0.0, full_action_space=False)
    gymnasium.register("PeerPong-v5", entry_point="ale_py.env:AtariEnv", kwargs=rules, max_episode_steps=108_000)
    env = gymnasium.make("PeerPong-v5", disable_env_checker=True)
    return Whole(Stack(AtariPreprocessing(env), 4))


def mujoco(name):
    """The newest version of an environment; Sample Factory has gymnasium 0.29, which ends at v4."""
    for version in ("v5", "v4"):
        try:
            return gymnasium.make(f"{name}-{version}")
        except gymnasium.error.Error:
            continue
    raise RuntimeError(f"no {name} here")


ENVS = {
    "breakout": lambda: MinAtarGame("breakout"),
    "pong": pong,
    "halfcheetah": lambda: mujoco("HalfCheetah"),
    "hopper": lambda: mujoco("Hopper"),
    "cartpole": lambda: gymnasium.make("CartPole-v1"),
    "pendulum": lambda: gymnasium.make("Pendulum-v1"),
}
