"""Vectors of bytes, integers and floats."""

import numpy as np
from base import Task, case
from gymnasium import spaces

RAW = ("--normalize.obs", "false")


@case("obs: vector of 128 uint8, 0 to 255 -> mlp, normalized")
@case("obs: vector of 128 uint8, 0 to 255 -> mlp, scaled to [-1, 1]", flags=RAW)
class Ram(Task):
    obs = spaces.Box(0, 255, (128,), np.uint8)


@case("obs: vector of 2 int64, bounds of their own -> mlp, normalized")
@case("obs: vector of 2 int64, bounds of their own -> mlp, scaled to [-1, 1]", flags=RAW)
class Counters(Task):
    obs = spaces.Box(np.array([0, 0]), np.array([10_000, 1]), (2,), np.int64)


@case("obs: vector of 3 int64 without bounds -> mlp, normalized")
@case("obs: vector of 3 int64 without bounds -> mlp, as it is: no bounds; --normalize.obs true scales it", flags=RAW)
class Unbounded(Task):
    obs = spaces.Box(-(2**63), 2**63 - 2, (3,), np.int64)

    def look(self):
        return self.observation_space.np_random.integers(-5, 5, 3)


@case("obs: vector of 4 int64, -100 to 100 -> mlp, normalized")
class SmallIntegers(Task):
    obs = spaces.Box(-100, 100, (4,), np.int8)


@case("obs: vector of 4 int64, 0 to 60000 -> mlp, normalized")
class UnsignedIntegers(Task):
    obs = spaces.Box(0, 60_000, (4,), np.uint16)


@case("obs: vector of 3 float32 -> mlp, normalized")
@case("obs: vector of 3 float32 -> mlp", flags=RAW)
class Doubles(Task):
    obs = spaces.Box(-1, 1, (3,), np.float64)


@case("obs: vector of 3 float32 -> mlp, normalized")
class SomeBounds(Task):
    obs = spaces.Box(np.array([-1, -np.inf, 0], np.float32), np.array([1, np.inf, np.inf], np.float32))


@case("obs: vector of 2 float32 -> mlp, normalized")
class LargeNumbers(Task):
    obs = spaces.Box(-1e9, 1e9, (2,), np.float32)


@case("obs: vector of 6 (2x3) float32 -> mlp, normalized")
class SmallMatrix(Task):
    obs = spaces.Box(-1, 1, (2, 3), np.float32)


@case("obs: vector of 5 bool -> mlp")
class Flags(Task):
    obs = spaces.Box(0, 1, (5,), bool)


@case("obs: vector of 3 float32 -> mlp, normalized")
class HalfPrecision(Task):
    obs = spaces.Box(-1, 1, (3,), np.float16)
