"""Groups report each environment that they build or first reset, also one that replaces another later."""

import gymnasium
import numpy as np
import pytest

from sfactory.envs import EnvError, listen_to_builds
from sfactory.envs.build_clock import BUILT
from sfactory.envs.gymnasium_adapter import EnvGroup


class Breaks(gymnasium.Env):
    """Environment 1 fails at its second step."""

    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)
    built = 0

    def __init__(self):
        self.number, self.steps = Breaks.built, 0
        Breaks.built += 1

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.number == 1 and self.steps == 2:
            raise RuntimeError("broken")
        return np.zeros(2, np.float32), 0.0, False, False, {}


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(Breaks, "built", 0)
    return []


def test_group_reports_every_build_and_first_reset_and_later_replacements(calls):
    with listen_to_builds(calls.append):
        group = EnvGroup(Breaks, 3, [1, 2, 3], name="breaks")
    assert calls == [0, BUILT, 1, BUILT, 2, BUILT]
    calls.clear()
    group.reset()
    assert calls == [0, BUILT, 1, BUILT, 2, BUILT]
    calls.clear()
    action = {"action": np.zeros(3, np.int64)}
    group.step(action)
    assert calls == [], "a step is none"
    assert group.step(action).faults[0].env == 1
    assert calls == [1, BUILT, 1, BUILT], "built and reset, outside of the context too"


def test_group_reports_the_end_of_a_build_that_failed(calls):
    with listen_to_builds(calls.append), pytest.raises(EnvError):
        EnvGroup(lambda: 1 / 0, 1, [1], name="breaks")
    assert calls == [0, BUILT]


def test_group_without_a_listener_reports_to_nobody(calls):
    with listen_to_builds(calls.append):
        pass
    EnvGroup(Breaks, 2, [1, 2], name="breaks").reset()
    assert calls == []


def test_group_says_which_environment_it_closes():
    group, closed = EnvGroup(Breaks, 3, [1, 2, 3], name="breaks"), []
    for env in group.envs:
        env.close = lambda: closed.append(int(group.at[0]))
    group.close()
    assert closed == [0, 1, 2]
