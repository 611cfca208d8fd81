"""Specs and spaces in checkpoints: everything a policy reads comes back, and nothing but data is accepted."""

import json
import random

import numpy as np
import pytest
from gymnasium import spaces

from sfactory.envs import EnvOptions, make_spec
from sfactory.envs.saved_spec import spaces_from_json, spaces_to_json, spec_from_json, spec_to_json

SPACES = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "one bound each": spaces.Box(np.array([0, -np.inf]), np.array([9, np.inf]), dtype=np.float64),
    "no numbers": spaces.Box(-1, 1, (0,), np.float32),
    "scalar": spaces.Box(-1, 1, ()),
    "integers": spaces.Box(-(2**62), 2**62 + 1, (2,), np.int64),
    "large": spaces.Box(0, 2**64 - 1, (2,), np.uint64),
    "truths": spaces.Box(0, 1, (2,), bool),
    "picture": spaces.Box(0, 255, (4, 84, 84), np.uint8),
    "discrete": spaces.Discrete(4, start=-2),
    "table": spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -5]]),
    "bits": spaces.MultiBinary((2, 2)),
    "dict": spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 1, (2,))]))]),
}


class Group:
    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


def through_a_file(data):
    """As a checkpoint writes it: with sorted keys, and without numbers that JSON does not have."""
    return json.loads(json.dumps(data, sort_keys=True, allow_nan=False))


@pytest.mark.parametrize("name", SPACES)
def test_spaces_come_back_as_they_were(name):
    space = SPACES[name]
    one, other = spaces_from_json(through_a_file(spaces_to_json(Group(space, space))))
    assert one == other == space
    assert (one.dtype, one.shape) == (space.dtype, space.shape)
    if name == "dict":
        assert list(one) == list(space), "the order of the leaves is that of the network's inputs"


def test_spaces_of_other_kinds_keep_their_place():
    """A policy does not read them: they were left out of its observation."""
    mixed = spaces.Tuple([spaces.Text(3), spaces.Discrete(2)])
    (first, second), _ = spaces_from_json(spaces_to_json(Group(mixed, spaces.Discrete(2))))
    assert second == spaces.Discrete(2)
    assert not isinstance(first, spaces.Discrete)
    assert spaces_to_json(Group(None, None)) is None


@pytest.mark.parametrize(
    "target",
    ["gymnasium/CartPole-v1", "minatar/breakout", "gymnasium/Pendulum-v1", "builders:Everything", "builders:Odd"],
)
def test_spec_comes_back_as_it_was(target):
    spec = odd() if target == "builders:Odd" else make_spec(target)
    back = spec_from_json(through_a_file(spec_to_json(spec)))
    assert back == spec
    assert back.spaces == through_a_file(spec.spaces)
    assert list(back.obs) == list(spec.obs)
    assert list(back.actions) == list(spec.actions)
    assert [leaf.source for leaf in back.obs.values()] == [leaf.source for leaf in spec.obs.values()]


def odd():
    return make_spec("builders:Odd", EnvOptions(drop=("mission",)))


WRONG = [None, [], {}, "a", -1, 10**12, 2.5, True, [[]], ["x"], {"kind": "Box"}, [10**6, 10**6], float("nan"), "nan"]


def damaged(data, draws):
    """A copy in which one value, at any depth, is another one or is missing."""
    copy = json.loads(json.dumps(data))
    place = copy
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return copy
        key = draws.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and draws.random() < 0.7:
            place = place[key]
            continue
        if draws.random() < 0.2:
            del place[key]
        else:
            place[key] = draws.choice(WRONG)
        return copy


def test_damaged_descriptions_are_refused_or_read_and_never_anything_else():
    """They may come with a run folder of anybody."""
    draws = random.Random(0)
    spec, messages = spec_to_json(odd()), []
    for _ in range(1500):
        data = damaged(spec, draws)
        try:
            back = spec_from_json(data)
            if back.spaces:
                spaces_from_json(back.spaces)
        except ValueError as error:
            messages.append(str(error))
    assert 500 < len(messages) < 1500
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize("shape", [[10**6, 10**6], [2] * 40, [-1], ["3"], "33", None, [1 << 27]])
def test_descriptions_of_too_large_spaces_are_refused_before_anything_is_allocated(shape):
    box = {"kind": "Box", "shape": shape, "dtype": "float32", "low": 0.0, "high": 1.0}
    discrete = {"kind": "Discrete", "shape": [], "dtype": "int64", "n": 2, "start": 0}
    with pytest.raises(ValueError, match=r"a shape is|numbers, more than"):
        spaces_from_json({"observation": box, "action": discrete})
    spec = spec_to_json(make_spec("gymnasium/CartPole-v1"))
    spec["obs"][0][1]["shape"] = shape
    with pytest.raises(ValueError, match=r"a shape is|numbers, more than|no description|bounds for"):
        spec_from_json(spec)


def test_nested_descriptions_are_refused_at_some_depth():
    data = {"kind": "Discrete", "shape": [], "dtype": "int64", "n": 2, "start": 0}
    for _ in range(500):
        data = {"kind": "Tuple", "spaces": [data]}
    with pytest.raises(ValueError, match="more than 20 deep"):
        spaces_from_json({"observation": data, "action": data})
