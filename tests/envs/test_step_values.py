"""What `step` and `reset` may return, and what to change where they return something else."""

from decimal import Decimal
from fractions import Fraction

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from sfactory.envs import EnvError, make_group
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.envs.step_values import as_flag, as_reward


class Returns(gymnasium.Env):
    """Environment whose step returns what it is given."""

    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, reward=1.0, terminated=False, truncated=False):
        self.result = reward, terminated, truncated, {}

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), *self.result


def step(**values):
    group = EnvGroup(lambda: Returns(**values), 1, [0], name="test/returns")
    group.reset()
    return group.step({"action": np.array([0])})


ONE_HALF = [
    0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5), Fraction(1, 2), Decimal("0.5"), [0.5],
    np.array(0.5), np.array([0.5]), np.array([[0.5]], np.float16), np.array([Fraction(1, 2)]),
]  # fmt: skip
ONE = [1, True, np.True_, np.int8(1), np.uint64(1), np.array([1]), np.array(True)]


@pytest.mark.parametrize(("reward", "number"), [*((r, 0.5) for r in ONE_HALF), *((r, 1.0) for r in ONE)], ids=repr)
def test_a_reward_is_one_number_of_any_kind(reward, number):
    result = step(reward=reward)
    assert not result.faults
    assert (result.reward.dtype, result.reward.tolist()) == (np.float32, [number])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (np.array([1.0, 2.0]), "the reward has shape (2,), it must be one number"),
        (np.zeros((0,)), "the reward has shape (0,), it must be one number"),
        ([1.0, 2.0], "the reward has shape (2,), it must be one number"),
        ("1.0", "the reward is the text '1.0', it must be one number"),
        (np.array(["1"]), "the reward is np.str_('1') of type str_, it must be one number"),
        (None, "the reward is None of type NoneType, it must be one number"),
        ({"a": 1.0}, "the reward is {'a': 1.0} of type dict, it must be one number"),
        (1j, "the reward is 1j of type complex, it must be one number"),
    ],
)
def test_any_other_reward_is_a_fault_that_says_so(reward, message):
    result = step(reward=reward)
    assert result.faults[0].message.startswith(f"ValueError: {message}; see step, {__file__}, line ")
    assert " (seed 0, step 0 of the episode)" in result.faults[0].message
    assert not result.valid[0]
    with pytest.raises(ValueError):
        as_reward(reward)


@pytest.mark.parametrize(
    "flag", [np.True_, np.array(True), np.array([True]), 1, np.int64(1), 1.0, np.array(1)], ids=repr
)
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_flags_are_booleans_of_any_kind(flag, name):
    for value, ends in ((flag, True), (type(flag)(0) if np.isscalar(flag) else np.zeros_like(flag), False)):
        result = step(**{name: value})
        assert not result.faults
        assert getattr(result, name).tolist() == [ends]
        assert len(result.episodes) == ends


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("False", "terminated is 'False' of type str, it must be True or False"),
        ("", "terminated is '' of type str, it must be True or False"),
        (None, "terminated is None of type NoneType, it must be True or False"),
        (2, "terminated is 2 of type int, it must be True or False"),
        (float("nan"), "terminated is nan of type float, it must be True or False"),
        (np.zeros(2, bool), "terminated has shape (2,), it must be True or False"),
    ],
)
def test_any_other_flag_is_a_fault_that_says_so(flag, message):
    assert step(terminated=flag).faults[0].message.startswith(f"ValueError: {message}; see step, {__file__}, line ")
    with pytest.raises(ValueError):
        as_flag(flag, "terminated")


OLD = """
class Four(MyEnv):
    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info

class ObsOnly(MyEnv):
    def reset(self, **options):
        return super().reset(**options)[0]

class Pair(MyEnv):
    observation_space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])
    def reset(self, **options):
        return 0, 1

class NoSeed(MyEnv):
    def reset(self):
        return super().reset()

class NothingBack(MyEnv):
    def step(self, action):
        super().step(action)

for kind in (Four, ObsOnly, NoSeed):  # in TimeLimit, which calls step and reset itself
    gymnasium.register(f"{kind.__name__}-v0", entry_point=kind, max_episode_steps=9)
"""
FIVE = (
    "must return five values: observation, reward, terminated, truncated, info (four are the old API of gym: its done "
)
TWO = "must return two values: observation, info (the observation alone is the old API of gym)"
SEED = (
    "reset() got an unexpected keyword argument 'seed': write reset(self, *, seed=None, options=None) and begin it with"
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_file:Four", f"ValueError: step() returned 4 values, it {FIVE}"),
        ("my_file:NothingBack", f"ValueError: step() returned a NoneType, it {FIVE}"),
        ("gymnasium/my_file:Four-v0", f"ValueError: not enough values to unpack (expected 5, got 4): step() {FIVE}"),
    ],
)
def test_a_step_of_the_old_api_is_answered_with_what_to_change(own_file, name, message):
    own_file("my_file.py", OLD)
    group = make_group(name, 1, [0])
    group.reset()
    (fault,) = group.step({"action": np.array([0])}).faults
    assert fault.message.startswith(message)
    assert "Traceback" in fault.message


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_file:ObsOnly", f"ValueError: reset() returned a ndarray of shape (3,), it {TWO}"),
        ("my_file:Pair", f"ValueError: reset() returned a tuple, it {TWO}"),
        ("my_file:NoSeed", f"TypeError: NoSeed.{SEED}"),
        ("gymnasium/my_file:ObsOnly-v0", f"ValueError: reset() returned a ndarray of shape (3,), it {TWO}"),
        ("gymnasium/my_file:NoSeed-v0", f"TypeError: NoSeed.{SEED}"),
    ],
)
def test_a_reset_of_the_old_api_is_answered_with_what_to_change(own_file, name, message):
    own_file("my_file.py", OLD)
    with pytest.raises(EnvError) as caught:
        make_group(name, 1, [0]).reset()
    assert str(caught.value).startswith(f"{name} failed at its first reset: {message}")
    assert caught.value.exit_code == 6


class Ends(Returns):
    """Environment whose first step ends the episode with the given info; it observes 0, and 1 after the step."""

    def __init__(self, info, terminated=False, truncated=True, obs=1.0):
        super().__init__(1.0, terminated, truncated)
        self.info, self.obs = info, np.full(2, obs, np.float32)

    def step(self, action):
        return self.obs, 1.0, *self.result[1:3], self.info


def end(*args, **values):
    group = EnvGroup(lambda: Ends(*args, **values), 1, [0], name="test/ends")
    group.reset()
    return group.step({"action": np.array([0])})


@pytest.mark.parametrize("true", [True, np.True_, 1, np.array([True])])
def test_a_time_limit_that_info_names_and_that_is_returned_as_terminated_is_a_fault(true):
    result = end({"TimeLimit.truncated": true}, terminated=True, truncated=False)
    assert result.faults[0].message.startswith(
        "ValueError: info says TimeLimit.truncated and step() returned terminated: return terminated False and "
        "truncated True at a time limit"
    )
    assert not result.valid[0]
    for flags in ({"terminated": False}, {"terminated": True, "truncated": True}):
        assert not end({"TimeLimit.truncated": True}, **flags).faults
    for info in ({"TimeLimit.truncated": False}, {"TimeLimit.truncated": None}, {}, None, [1]):
        assert not end(info, terminated=True, truncated=False).faults


@pytest.mark.parametrize("key", ["final_obs", "final_observation", "terminal_observation"])
def test_an_environment_that_resets_itself_in_its_last_step_is_a_fault(key):
    last = np.full(2, 0.5, np.float32)
    result = end({key: last})
    assert result.faults[0].message.startswith(
        f"ValueError: step() returned another observation than info[{key!r}] at the end of an episode: it resets the "
        "environment itself"
    )
    assert not end({key: last}, obs=0.5).faults  # the same observation, named twice
    assert not end({key: None}).faults
    assert not end({key: last}, truncated=False).faults
    assert end({key: "text"}).faults


@pytest.mark.usefixtures("short_retries")
def test_a_reset_of_the_old_api_that_returned_two_numbers_says_so():
    class Pair(Returns):
        def reset(self, *, seed=None, options=None):
            return self.pair

    for pair in ((0.5, 0.2), [0.5, 0.2], (np.float32(1), np.float32(0)), [np.zeros(2), np.zeros(2)]):
        Pair.pair = pair
        with pytest.raises(EnvError, match=r"reset\(\) returned a (tuple|list).*the old API of gym"):
            EnvGroup(Pair, 1, [0], name="test/pair").reset()


@pytest.mark.usefixtures("short_retries")
def test_a_reset_that_needs_options_says_what_to_write():
    class Needs(Returns):
        def reset(self, *, seed=None, options):
            return np.zeros(2, np.float32), {}

    with pytest.raises(EnvError, match=r"missing 1 .*'options': write options=None; what it needs are arguments of"):
        EnvGroup(Needs, 1, [0], name="test/needs").reset()
