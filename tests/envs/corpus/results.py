"""What `reset` and `step` return: unusual and right, or wrong."""

import sys
from fractions import Fraction

import numpy as np
from base import Task, case


class Rewarded(Task):
    """One reward for every step."""

    value = 1.0

    def reward(self, action):
        return self.value


@case()
class RewardInAnArray(Rewarded):
    value = np.array([1.0])


@case()
class RewardOfNoDimension(Rewarded):
    value = np.array(1, np.int32)


@case()
class RewardAsFraction(Rewarded):
    value = Fraction(1, 3)


@case()
class RewardAsHalf(Rewarded):
    value = np.float16(0.5)


@case()
class RewardAsBool(Rewarded):
    value = np.True_


@case(code=6, says="shape (2,)")
class RewardOfTwo(Rewarded):
    value = np.array([1.0, 2.0])


@case(code=6, says="reward")
class NoReward(Rewarded):
    value = None


@case(code=6, says="NaN")
class RewardNotANumber(Rewarded):
    value = float("nan")


@case()
class FlagsOfNumpy(Task):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, np.bool_(terminated), np.array(truncated), info


@case()
class FlagsAsIntegers(Task):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, int(terminated), int(truncated), info


@case(code=6, says="terminated")
class FlagAsText(Task):
    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, "False", truncated, info


@case(code=6, says="step() returned 4 values")
class OldStep(Task):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


@case(code=6, says="reset() returned a ndarray")
class OldReset(Task):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


@case(code=6, says="write reset(self, *, seed=None, options=None)")
class ResetWithoutSeed(Task):
    def reset(self):
        return super().reset()


@case(code=6, says="shape")
class WrongShape(Task):
    def look(self):
        return np.zeros(4, np.float32)


@case(code=6, says="NaN")
class NotANumber(Task):
    def step(self, action):
        obs, *rest = super().step(action)
        return obs * np.nan, *rest


@case(code=6, says="in the first step")
class RaisesAtOnce(Task):
    def step(self, action):
        raise RuntimeError("in the first step")


@case(code=6, says="in the reset")
class RaisesInReset(Task):
    def reset(self, *, seed=None, options=None):
        raise RuntimeError("in the reset")


@case(code=6, says="in the constructor")
class RaisesInConstructor(Task):
    def __init__(self):
        raise RuntimeError("in the constructor")


@case(check=6)
class RaisesSometimes(Task):
    """A harmless rate of failures: the run goes on."""

    def step(self, action):
        if self.np_random.random() < 0.01:
            raise RuntimeError("the solver diverged")
        return super().step(action)


@case()
class Talkative(Task):
    def __init__(self):
        super().__init__()
        print("hello from the simulator")

    def step(self, action):
        print("step")
        return super().step(action)


@case()
class LargeNumberInInfo(Task):
    """A number that fits no float is left out, as the entropy of a SeedSequence."""

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, {"entropy": 2**100, "more": 10**400}


@case(check=6, code=6, says="SystemExit: 0")
class EndsTheProcess(Task):
    def step(self, action):
        sys.exit(0)
