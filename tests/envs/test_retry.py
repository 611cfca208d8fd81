"""Building and resetting environments again after a failure: how long, how often, and with which heartbeat."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from sfactory.envs import EnvError, env_copies, retry
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.envs.retry import REPLACE_S, START_S, retried


@pytest.fixture
def clock(monkeypatch):
    """A clock that only pauses advance; returns [seconds]."""
    now = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


class Attempt:
    """Fails until `ready`."""

    def __init__(self, clock, ready):
        self.clock, self.ready, self.times = clock, ready, []

    def __call__(self):
        self.times.append(round(self.clock[0], 3))
        if self.clock[0] < self.ready:
            raise OSError("licence still taken")
        return "built"


def test_retried_pauses_twice_as_long_after_every_failure(clock):
    attempt = Attempt(clock, ready=1.0)
    assert retried(attempt, 30.0) == "built"
    assert attempt.times == [0.0, 0.05, 0.15, 0.35, 0.75, 1.55]


def test_retried_raises_the_last_error_after_the_given_seconds(clock):
    attempt = Attempt(clock, ready=99.0)
    with pytest.raises(OSError, match="licence"):
        retried(attempt, 2.0)
    assert attempt.times[-1] == clock[0] == 2.0, "the last attempt is at the end"
    with pytest.raises(OSError):
        retried(attempt, 0.0)
    assert attempt.times[-1] == 2.0, "without time there is one attempt"


def test_retried_gives_a_beat_at_least_once_a_second(clock):
    beats = []
    with pytest.raises(OSError):
        retried(Attempt(clock, ready=99.0), REPLACE_S, lambda: beats.append(clock[0]))
    assert beats[0] == 0.0, "before the first attempt, which may be slow"
    assert max(np.diff(beats)) <= 1.0 + 1e-9


def test_retried_raises_an_error_at_once_that_would_only_repeat(clock):
    attempt = Attempt(clock, ready=1.0)
    with pytest.raises(OSError):
        retried(attempt, 30.0, transient=lambda error: not isinstance(error, OSError))
    assert attempt.times == [0.0]


class Simulator(gymnasium.Env):
    """Can be built only `wait` seconds after the last close; its resets fail as `bad_resets` says, its steps if
    `bad_step`."""

    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)
    clock, wait, closed_at, closes = None, 1.0, -np.inf, 0
    bad_resets: list = []  # noqa: RUF012
    bad_step = False

    def __init__(self):
        if self.clock[0] - Simulator.closed_at < self.wait:
            raise OSError("licence still taken")

    def reset(self, *, seed=None, options=None):
        if self.bad_resets and self.bad_resets.pop(0):
            raise RuntimeError("no answer from the simulator")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if self.bad_step:
            raise RuntimeError("simulator crashed")
        return np.ones(1, np.float32), 1.0, False, False, {}

    def close(self):
        Simulator.closed_at, Simulator.closes = self.clock[0], Simulator.closes + 1


@pytest.fixture
def simulator(clock, monkeypatch):
    """The class Simulator with the clock, as new."""
    for name, value in {"clock": clock, "wait": 1.0, "closed_at": -np.inf, "closes": 0, "bad_resets": []}.items():
        monkeypatch.setattr(Simulator, name, value)
    return Simulator


def group_of(num_envs, factory=Simulator):
    return EnvGroup(factory, num_envs, list(range(num_envs)), name="test/simulator")


def step(group):
    return group.step({"action": np.zeros(group.num_envs, int)})


def test_env_group_waits_until_a_failed_environment_can_be_built_again(simulator, clock):
    group, beats = group_of(2), []
    group.beat = lambda: beats.append(clock[0])
    group.reset()
    group.envs[0].bad_step = True
    failed = step(group)
    assert failed.valid.tolist() == [False, True], "the other environment stepped and waits"
    assert [fault.env for fault in failed.faults] == [0]
    assert "simulator crashed" in failed.faults[0].message
    assert 1.0 <= clock[0] < 3.0
    assert simulator.closes == 1, "closed once, not before every attempt: that would begin the wait again"
    assert len(beats) > 2
    assert step(group).valid.all()


def test_env_group_gives_up_if_a_failed_environment_cannot_be_built_for_long(simulator, clock):
    group = group_of(2)
    group.reset()
    simulator.wait, group.envs[0].bad_step = 1e9, True
    with pytest.raises(EnvError, match="test/simulator could not be built: OSError: licence still taken") as caught:
        step(group)
    assert caught.value.fault
    assert clock[0] == REPLACE_S


def test_env_group_replaces_an_environment_whose_first_reset_fails(simulator):
    simulator.wait, simulator.bad_resets = 0.0, [False, True, True, False]
    group = group_of(3)
    group.reset()
    assert simulator.closes == 2
    assert group.seeds[0] == 0
    assert group.seeds[1] != 1, "with a new seed: the old one may be the reason"
    assert group.seeds[2] == 2
    assert step(group).valid.all()


def test_env_group_gives_up_quickly_if_every_first_reset_fails(simulator, clock):
    simulator.wait, simulator.bad_resets = 0.0, [True] * 99
    with pytest.raises(EnvError, match="failed at its first reset: RuntimeError: no answer") as caught:
        group_of(3).reset()
    assert caught.value.fault
    assert clock[0] == START_S < 5.0


def test_env_group_tries_again_to_build_an_environment_after_one_that_was_built(simulator, clock):
    simulator.wait = 0.0
    builds = []

    def factory():
        builds.append(clock[0])
        if len(builds) in (2, 3):
            raise OSError("port in use")
        return Simulator()

    assert len(group_of(2, factory).envs) == 2
    assert builds == [0.0, 0.0, 0.05, pytest.approx(0.15)]


def test_env_group_raises_at_once_if_its_first_environment_cannot_be_built(simulator, clock):
    """The arguments may be wrong, and a command that checks them should not wait."""
    simulator.closed_at = clock[0]
    with pytest.raises(EnvError, match="licence still taken"):
        group_of(2)
    assert clock[0] == 0.0


def test_env_group_closes_what_it_built_if_it_cannot_be_built(simulator, monkeypatch):
    monkeypatch.setattr(env_copies, "START_S", 0.0)
    remaining = [Simulator, Simulator]
    with pytest.raises(EnvError):
        group_of(3, lambda: remaining.pop()())
    assert simulator.closes == 2
