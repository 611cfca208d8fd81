"""An environment whose every observation, reward and end says where it comes from. No torch: samplers import it.

Everything is a function of the seed, the environment's number, the episode, the step and the action, so that a reader
of a row can compute what the row must hold (`witness.py`).
"""

from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

ACTIONS = 5
NO_ACTION = ACTIONS
"""Stands for the last action in the first observation of an episode."""
WIDTH = 9
DIGIT = 2048  # base of numbers that take several places
SCALES = np.array([DIGIT, DIGIT, DIGIT, 64, DIGIT, DIGIT, 16, 8, DIGIT])
"""An observation holds whole numbers divided by these powers of two: exact in float32, and in the range of networks."""


class Place(NamedTuple):
    """Where an observation comes from. All int64 [...]."""

    seed: np.ndarray
    env: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    action: np.ndarray


def observation(seed, env, episode, step, action):
    """[..., WIDTH] float32; the last number is a sum of the others that a row of two halves does not have."""
    seed, env, episode, step, action = np.broadcast_arrays(
        *(np.asarray(x, np.int64) for x in (seed, env, episode, step, action))
    )
    digits = [
        seed % DIGIT,
        seed // DIGIT % DIGIT,
        seed // DIGIT**2,
        env,
        episode % DIGIT,
        episode // DIGIT,
        step,
        action,
    ]
    primes = (31, 37, 41, 43, 47, 53, 59, 61)
    total = sum(prime * digit for prime, digit in zip(primes, digits, strict=True)) % DIGIT
    return (np.stack([*digits, total], -1) / SCALES).astype(np.float32)


def place(obs):
    """The place that an observation [..., WIDTH] says it comes from."""
    numbers = np.rint(obs * SCALES).astype(np.int64)
    seed = numbers[..., 0] + DIGIT * numbers[..., 1] + DIGIT**2 * numbers[..., 2]
    return Place(seed, numbers[..., 3], numbers[..., 4] + DIGIT * numbers[..., 5], numbers[..., 6], numbers[..., 7])


def reward(env, episode, step, action):
    """Reward of an action, a whole number from 1 to 97."""
    return 1.0 + (7 * env + 13 * episode + 3 * step + 5 * action) % 97


def length(env, episode):
    """Steps of an episode: many are shorter than a slot, some longer."""
    return 1 + (5 * env + 11 * episode) % 13


def is_truncated(env, episode):
    """Whether the end of an episode is a truncation."""
    return (env + episode) % 2 == 1


class SelfDescribing(gymnasium.Env):
    """See the top of this file."""

    observation_space = spaces.Box(-1.0, DIGIT, (WIDTH,), np.float32)
    action_space = spaces.Discrete(ACTIONS)

    def __init__(self, env_index):
        self.env, self.seed, self.episode = env_index, 0, -1

    def reset(self, *, seed=None, options=None):
        if seed is not None:  # a sampler seeds an environment once; every generation of it has other seeds
            self.seed, self.episode = seed, -1
        self.episode, self.step_number = self.episode + 1, 0
        return observation(self.seed, self.env, self.episode, 0, NO_ACTION), {}

    def step(self, action):
        gain = reward(self.env, self.episode, self.step_number, int(action))
        self.step_number += 1
        ended, cut = self.step_number >= length(self.env, self.episode), is_truncated(self.env, self.episode)
        obs = observation(self.seed, self.env, self.episode, self.step_number, action)
        return obs, gain, ended and not cut, ended and cut, {}
