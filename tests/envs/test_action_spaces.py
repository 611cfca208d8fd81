"""Action spaces: leaves, and actions in the shape and dtype of the environment's own space."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from sfactory.envs import EnvError
from sfactory.envs.action_leaf import ActionSpace
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.tools.random_rollout import random_action

f4 = np.float32


class Acts(gymnasium.Env):
    """Keeps the actions it receives; they must be in its space."""

    observation_space = spaces.Box(-1, 1, (1,), f4)

    def __init__(self, space):
        self.action_space, self.actions = space, []

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, f4), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.actions.append(action)
        return np.zeros(1, f4), 1.0, False, False, {}


def group_of(space):
    return EnvGroup(lambda: Acts(space), 2, [0, 1], name="test/acts")


TRAINABLE = {  # space -> (kind, shape, sizes) of each leaf
    "scalar box": (spaces.Box(-1, 1, (), f4), {"action": ("box", (), (1,))}),
    "box [2, 3] of float64": (spaces.Box(-1, 1, (2, 3), np.float64), {"action": ("box", (2, 3), (6,))}),
    "box without bounds": (spaces.Box(-np.inf, np.inf, (2,), f4), {"action": ("box", (2,), (2,))}),
    "integers": (spaces.Box(-10, 10, (1,), np.int64), {"action": ("discrete", (1,), (21,))}),
    "scalar integer": (spaces.Box(-10, 10, (), np.int32), {"action": ("discrete", (), (21,))}),
    "different integers": (
        spaces.Box(np.array([0, -3]), np.array([5, 3]), dtype=np.int16), {"action": ("discrete", (2,), (6, 7))}),
    "bytes [2, 2]": (spaces.Box(0, 255, (2, 2), np.uint8), {"action": ("discrete", (4,), (256,) * 4)}),
    "booleans": (spaces.Box(0, 1, (3,), bool), {"action": ("discrete", (3,), (2, 2, 2))}),
    "1,024 integers": (spaces.Box(0, 1023, (1,), np.int64), {"action": ("discrete", (1,), (1024,))}),
    "discrete with a start": (spaces.Discrete(3, start=-5), {"action": ("discrete", (), (3,))}),
    "discrete int32": (spaces.Discrete(3, dtype=np.int32), {"action": ("discrete", (), (3,))}),
    "multi-discrete [2, 2]": (
        spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -5]]), {"action": ("discrete", (4,), (2, 3, 4, 5))}),
    "multi-binary [2, 3]": (spaces.MultiBinary((2, 3)), {"action": ("discrete", (6,), (2,) * 6)}),
    "an empty leaf": (
        spaces.Dict(a=spaces.Box(-1, 1, (0, 3), f4), b=spaces.Discrete(3), c=spaces.Box(0, 5, (0,), np.int64)),
        {"action/b": ("discrete", (), (3,))}),
    "nested": (
        spaces.Tuple([spaces.Dict(x=spaces.Box(-1, 1, (), f4)), spaces.Box(0, 3, (2,), np.int8)]),
        {"action/0/x": ("box", (), (1,)), "action/1": ("discrete", (2,), (4, 4))}),
    "a dict with one leaf": (spaces.Dict(x=spaces.Discrete(2)), {"action/x": ("discrete", (), (2,))}),
}  # fmt: skip


def same_kind(action, sample):
    """Whether an action has the types of a sample of its space."""
    if isinstance(sample, dict):
        return list(action) == list(sample) and all(same_kind(action[key], sample[key]) for key in sample)
    if isinstance(sample, tuple):
        return all(same_kind(a, b) for a, b in zip(action, sample, strict=True))
    return (type(action), action.dtype, action.shape) == (type(sample), sample.dtype, sample.shape)


@pytest.mark.parametrize("name", TRAINABLE)
def test_environments_receive_actions_of_their_own_space(name):
    space, leaves = TRAINABLE[name]
    group = group_of(space)
    assert {n: (leaf.kind, leaf.shape, leaf.sizes) for n, leaf in group.spec.actions.items()} == leaves
    obs, draws = group.reset(), np.random.default_rng(0)
    for _ in range(20):
        step = group.step(random_action(group.spec, obs, draws))
        assert not step.faults
    sample = space.sample()
    assert all(same_kind(action, sample) for env in group.envs for action in env.actions)


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_batch_of_actions_has_the_same_values_as_single_ones(name):
    space = ActionSpace("e", TRAINABLE[name][0])
    group = group_of(space.space)
    action = random_action(group.spec, group.reset(), np.random.default_rng(3))
    arrays = space.arrays(action, np.zeros(2, bool))
    group.step(action)
    for env, instance in enumerate(group.envs):
        flat = spaces.flatten(space.space, instance.actions[0])
        batch = spaces.flatten(space.space, space.nest([array[env] for array in arrays]))
        np.testing.assert_array_equal(batch, flat)


def test_every_value_of_an_integer_box_can_be_chosen():
    group = group_of(spaces.Box(np.array([[-1, 250]]), np.array([[1, 252]]), dtype=np.int16))
    group.reset()
    for first in range(3):
        group.step({"action": np.array([[first, 2 - first], [0, 0]])})
    assert [action.tolist() for action in group.envs[0].actions] == [[[-1, 252]], [[0, 251]], [[1, 250]]]
    assert group.step({"action": np.array([[3, 0], [0, 0]])}).faults[0].message.startswith("ValueError: illegal action")


UNSUPPORTED = {
    "many integers": (spaces.Box(-10000, 10000, (1,), np.int64),
        "action space action: Box(-10000, 10000, (1,), int64) has 20,001 values per number, and at most 1,024 are "
        "chosen one by one; use Discrete(20001, start=-10000) for categories, or a Box of float32 for quantities"),
    "one more than 1,024": (spaces.Box(0, 1024, (1,), np.int64), "has 1,025 values per number, and at most 1,024"),
    "many integers, alike": (spaces.Box(0, 4095, (3,), np.int64), "use MultiDiscrete([4096] * 3, start=[0] * 3) for"),
    "many integers, different": (spaces.Box(np.array([0, -3]), np.array([5000, 3]), dtype=np.int16),
        "use MultiDiscrete([5001, 7], start=[0, -3]) for categories, or a Box of float32"),
    "integers without bounds": (spaces.Box(0, np.inf, (2,), np.int32),
        "has no finite bounds, and at most 1,024 are chosen one by one; use a Box of float32 for quantities"),
    "integers beyond int64": (spaces.Box(2**63, 2**63 + 9, (1,), np.uint64), "has no finite bounds"),
    "text": (spaces.Text(4), "action space action: Text("),
    "sequence": (spaces.Sequence(spaces.Discrete(3)), "action space action: Sequence(Discrete(3), stack=False) is"),
    "text inside": (spaces.Dict(a=spaces.Discrete(2), t=spaces.Text(3)), "action space action/t: Text("),
    "nothing": (None, "action space action: None is not supported; use Box, Discrete, MultiDiscrete, MultiBinary, or"),
    "no numbers": (spaces.Box(-1, 1, (0,), f4), "test/acts: action space Box([], [], (0,), float32) has no numbers, "),
    "no leaves": (spaces.Dict({}), "test/acts: action space Dict() has no numbers, so there is nothing to choose"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_action_spaces_are_refused_in_one_line_with_what_to_use(name):
    space, message = UNSUPPORTED[name]
    with pytest.raises(EnvError) as caught:
        group_of(space)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
