"""Environments of `test_reading_observations.py`, in a file that the processes of a run import."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Which(gymnasium.Env):
    """20 steps; the reward is 1 if the action is the hidden bit `k`, which the observation, `look()`, shows."""

    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action):
        reward, self.t = float(action == self.k), self.t + 1
        return self._next(), reward, False, self.t >= 20, {}

    def _next(self):
        self.k = int(self.np_random.integers(2))
        return self.look()


class Counters(Which):
    """A large number that means nothing, and the bit."""

    observation_space = spaces.Box(0, 10_000, (2,), np.int64)

    def look(self):
        return np.array([self.np_random.integers(10_000), self.k])


class Bar(Which):
    """A bright bar left or right in noise."""

    observation_space = spaces.Box(0, 255, (12, 12, 3), np.uint8)

    def look(self):
        picture = self.np_random.integers(0, 120, (12, 12, 3), dtype=np.uint8)
        picture[:, :3] += np.uint8(100 * self.k)
        picture[:, -3:] += np.uint8(100 - 100 * self.k)
        return picture


class Memory(Counters):
    """Bytes, read as they are by earlier versions."""

    observation_space = spaces.Box(0, 255, (3,), np.uint8)

    def look(self):
        return np.full(3, 200 * self.k, np.uint8)


class Cube(Which):
    """A shape that may be a picture or a stack of pictures."""

    observation_space = spaces.Box(0, 255, (36, 36, 36), np.uint8)


for one in (Counters, Bar, Memory, Cube):
    gymnasium.register(f"Reading{one.__name__}-v0", entry_point=one)
