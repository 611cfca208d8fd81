"""The leaves of observation spaces: shapes, bounds, categories, and what is left out or refused."""

import math

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.envs.obs_leaf import obs_leaf, obs_leaves
from sfactory.envs.space_leaves import space_leaves
from sfactory.envs.spec import Leaf
from sfactory.envs.vector_adapter import Native, VectorGroup
from sfactory.errors import EnvError, Exit


def leaf_of(space):
    return obs_leaf("obs", (), space).leaf


@pytest.mark.parametrize(
    ("space", "leaf"),
    [
        (spaces.Box(0, 1, (), np.float32), Leaf((), "float32", (0.0,), (1.0,))),
        (spaces.Box(0, 255, (84, 84), np.uint8), Leaf((84, 84), "uint8", (0.0,), (255.0,))),
        (spaces.Box(-np.inf, np.inf, (3,)), Leaf((3,), "float32")),
        (spaces.Box(-np.inf, np.inf, (3,), np.int64), Leaf((3,), "int64")),
        (spaces.Box(-np.inf, 5, (3,), np.int32), Leaf((3,), "int64", (), (5.0,))),
        (spaces.Box(-128, 127, (3,), np.int8), Leaf((3,), "int64", (-128.0,), (127.0,))),
        (spaces.Box(0, 2**64 - 1, (2,), np.uint64), Leaf((2,), "float32", (0.0,), (2.0**64,))),
        (spaces.Box(np.array([0, 1]), np.array([9, 7]), dtype=int), Leaf((2,), "int64", (0.0, 1.0), (9.0, 7.0))),
        (spaces.Box(np.zeros(2), np.array([9, np.inf])), Leaf((2,), "float32", (0.0,), (9.0, math.inf))),
        (spaces.Box(0, 1, (10, 10, 4), bool), Leaf((10, 10, 4), "bool")),
        (spaces.MultiBinary(5), Leaf((5,), "bool")),
        (spaces.MultiBinary((2, 3)), Leaf((6,), "bool")),
        (spaces.Discrete(16), Leaf((16,), "bool")),
        (spaces.Discrete(1024), Leaf((1024,), "bool")),
        (spaces.Discrete(1025), Leaf((11,), "bool")),
        (spaces.Discrete(2**40), Leaf((40,), "bool")),
        (spaces.MultiDiscrete([3, 4]), Leaf((7,), "bool")),
        (spaces.MultiDiscrete([[3, 4], [5, 6]]), Leaf((18,), "bool")),
        (spaces.MultiDiscrete([3, 5000, 2]), Leaf((3 + 13 + 2,), "bool")),
        (spaces.MultiDiscrete(np.full((30, 30), 6)), Leaf((30 * 30 * 3,), "bool")),
    ],
)
def test_leaf_of_a_space(space, leaf):
    assert leaf_of(space) == leaf


def test_source_of_a_leaf_says_how_categories_are_encoded():
    assert leaf_of(spaces.Discrete(16)).source == "Discrete(16), one-hot"
    assert leaf_of(spaces.Discrete(5000)).source == "Discrete(5000), binary digits"
    assert leaf_of(spaces.MultiDiscrete([[3, 4], [5, 6]])).source == "MultiDiscrete 2x2, one-hot"
    assert leaf_of(spaces.MultiDiscrete([3, 5000])).source == "MultiDiscrete 2, one-hot and binary digits"
    assert leaf_of(spaces.MultiBinary((2, 3))).source == "MultiBinary 2x3"


def numbers(space, row):
    """The values of a space that a row of its leaf stands for."""
    sizes = np.ravel(getattr(space, "nvec", getattr(space, "n", 0))).tolist()
    found, place = [], 0
    for size in sizes:
        one_hot = size <= 1024
        width = size if one_hot else (size - 1).bit_length()
        part = row[place : place + width]
        if one_hot:
            assert part.sum() == 1
        found.append(int(part.argmax()) if one_hot else sum(int(bit) << power for power, bit in enumerate(part)))
        place += width
    assert place == len(row)
    return np.reshape(found, space.shape) + space.start


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(6, start=-2),
        spaces.Discrete(5000, start=7),
        spaces.MultiDiscrete([[3, 4], [5, 6]], start=[[1, 0], [0, -9]]),
        spaces.MultiDiscrete([3, 70_000, 2, 1025]),
    ],
)
def test_categories_can_be_read_back_from_their_features(space):
    space.seed(1)
    reader = obs_leaf("obs", (), space)
    values = np.stack([space.sample() for _ in range(50)])
    rows = reader.encode(values)
    for value, row in zip(values, rows, strict=True):
        np.testing.assert_array_equal(numbers(space, row), value)
        np.testing.assert_array_equal(reader(value), row)


def test_category_is_read_from_an_int_and_from_an_array():
    reader = obs_leaf("obs", (), spaces.Discrete(4, start=2))
    for value in (3, np.int32(3), np.array(3), np.array([3])):
        assert reader(value).tolist() == [False, True, False, False]


@pytest.mark.parametrize("value", [1, 6, 3.0, "left", np.array([3, 3])])
def test_category_outside_its_space_is_an_error(value):
    with pytest.raises(ValueError, match="obs is"):
        obs_leaf("obs", (), spaces.Discrete(4, start=2))(value)


def test_leaf_without_numbers_is_left_out():
    space = spaces.Dict(
        a=spaces.Box(-1, 1, (0,)), b=spaces.Box(-1, 1, (3,)), c=spaces.Box(0, 255, (0, 84, 84), np.uint8)
    )
    readers, omitted = obs_leaves("some/env", space_leaves(space, "obs"))
    assert list(readers) == ["obs/b"]
    assert omitted == {
        "obs/a": "a space of shape (0,) holds no number",
        "obs/c": "a space of shape (0, 84, 84) holds no number",
    }


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (0,)), spaces.Dict({}), spaces.Dict(a=spaces.Box(-1, 1, (2, 0)))])
def test_observation_without_any_number_is_refused(space):
    with pytest.raises(EnvError, match="some/env: the observation space holds no number") as error:
        obs_leaves("some/env", space_leaves(space, "obs"))
    assert error.value.exit_code == Exit.USAGE
    assert "\n" not in str(error.value)


GRAPH = spaces.Graph(spaces.Box(-1, 1, (2,)), None)


@pytest.mark.parametrize(
    "odd", [spaces.Text(30), GRAPH, spaces.Sequence(spaces.Discrete(3)), spaces.OneOf([spaces.Discrete(2)])]
)
def test_leaf_that_is_no_array_is_refused_with_what_to_type(odd):
    space = spaces.Dict(image=spaces.Box(0, 1, (3,)), inner=spaces.Dict(mission=odd))
    with pytest.raises(EnvError, match=r"^observation space obs/inner/mission: \w+ cannot .*--env.drop inner/mission$"):
        obs_leaves("some/env", space_leaves(space, "obs"))
    with pytest.raises(EnvError, match=r"^observation space obs: \w+ is not supported; use Box") as error:
        obs_leaves("some/env", space_leaves(odd, "obs"))
    assert "0x" not in str(error.value)  # no address


def test_two_leaves_of_one_name_are_refused():
    space = spaces.Dict({"a/b": spaces.Box(0, 1, (1,)), "a": spaces.Dict(b=spaces.Box(0, 1, (1,)))})
    with pytest.raises(EnvError, match="two leaves of the observation have the name obs/a/b"):
        obs_leaves("some/env", space_leaves(space, "obs"))


EVERYTHING = spaces.Dict(
    number=spaces.Box(0, 9, (), np.int64),
    empty=spaces.Box(0, 1, (2, 0)),
    place=spaces.Discrete(5, start=1),
    many=spaces.Discrete(3000),
    table=spaces.MultiDiscrete([[2, 3], [4, 5]]),
    switches=spaces.MultiBinary((2, 2)),
    pair=spaces.Tuple((spaces.Box(-1, 1, (2, 2), np.float64), spaces.Discrete(2))),
)


class Everything(gymnasium.Env):
    observation_space, action_space = EVERYTHING, spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


class EverythingNative(VectorGroup):
    """The same space as a native vector environment."""

    def __init__(self, num_envs, change=lambda obs: obs):
        super().__init__("some/native", EVERYTHING, spaces.Discrete(2), num_envs, range(num_envs))
        self.change = change
        self.batched = gymnasium.vector.utils.batch_space(EVERYTHING, num_envs)
        self.batched.seed(3)

    def begin(self):
        self.raw = self.change(self.batched.sample())
        return self.raw

    def advance(self, action):
        never = self._never
        return Native(self.begin(), np.zeros(self.num_envs), never, never, never, never, never)

    def close(self): ...


def test_group_and_vector_group_read_every_space_alike():
    group = EnvGroup(Everything, 3, [1, 2, 3], name="some/env")
    native = EverythingNative(3)
    assert native.spec.obs == group.spec.obs
    assert native.spec.omitted == group.spec.omitted == {"obs/empty": "a space of shape (2, 0) holds no number"}
    shapes = {name: leaf.shape for name, leaf in group.spec.obs.items()}
    assert shapes == {
        "obs/many": (12,),
        "obs/number": (),
        "obs/pair/0": (2, 2),
        "obs/pair/1": (2,),
        "obs/place": (5,),
        "obs/switches": (4,),
        "obs/table": (14,),
    }
    for obs in (group.reset(), group.step({"action": np.zeros(3, np.int64)}).obs, native.reset()):
        assert {name: (array.shape[1:], array.dtype.name) for name, array in obs.items()} == {
            name: (leaf.shape, leaf.dtype) for name, leaf in group.spec.obs.items()
        }
    rows = native.reset()
    readers, _ = obs_leaves("x", space_leaves(EVERYTHING, "obs"))
    for number, single in enumerate(gymnasium.vector.utils.iterate(native.batched, native.raw)):
        for name, reader in readers.items():
            np.testing.assert_array_equal(rows[name][number], np.asarray(reader(single)).astype(rows[name].dtype))


def test_vector_group_refuses_numbers_that_would_be_cut():
    def cut(obs):
        return {**obs, "number": obs["number"] + 0.5}

    with pytest.raises(ValueError, match="obs/number has dtype float64, but its space has int64"):
        EverythingNative(2, cut).reset()


class Gives(gymnasium.Env):
    """Environment that returns the observation that it is given."""

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space, obs):
        self.observation_space, self.given = observation_space, obs

    def reset(self, *, seed=None, options=None):
        return self.given, {}


CUT = [
    (np.uint8, np.array([300, 2], np.uint16), "obs is 300, but its space has uint8, which ends at 255"),
    (np.int64, np.array([2**63 + 5, 2], np.uint64), "which ends at 9223372036854775807"),
]


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(("dtype", "obs", "message"), CUT)
def test_integers_that_a_space_cannot_hold_are_refused_by_every_group(dtype, obs, message):
    space = spaces.Box(0, 255, (2,), dtype)
    with pytest.raises(EnvError, match=message):
        EnvGroup(lambda: Gives(space, obs), 1, [0], name="some/env").reset()

    class Native(EverythingNative):
        def __init__(self):
            VectorGroup.__init__(self, "some/native", space, spaces.Discrete(2), 1, [0])

        def begin(self):
            return obs[None]

    with pytest.raises(ValueError, match=message):
        Native().reset()


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_integers_of_a_wider_dtype_are_read_where_they_fit(dtype):
    space = spaces.Box(0, 255, (2,), np.uint8)
    group = EnvGroup(lambda: Gives(space, np.array([255, 2], dtype)), 1, [0], name="some/env")
    assert group.reset()["obs"].tolist() == [[255, 2]]


BOX = spaces.Box(-1, 1, (2,), np.float32)
NOT_NESTED_ALIKE = [
    (spaces.Tuple((BOX, BOX)), np.zeros((3, 2), np.float32), "obs has 3 parts, but its space has 2"),
    (spaces.Tuple((BOX, BOX)), (np.zeros(2), np.zeros(2), 1.0), "obs has 3 parts, but its space has 2"),
    (spaces.Dict(a=spaces.Tuple((BOX,))), {"a": [np.zeros(2)] * 2}, "obs/a has 2 parts, but its space has 1"),
    (spaces.Tuple((BOX, BOX)), (np.zeros(2),), "obs has 1 parts, but its space has 2"),
    (spaces.Dict(a=BOX, b=BOX), {"a": np.zeros(2)}, "the observation has no 'b', which its space has"),
    (spaces.Dict(a=spaces.Dict(b=BOX)), {"a": np.zeros(2)}, "the observation has no 'b' in 'a', which its space has"),
    (spaces.Dict(a=BOX), np.zeros(2), "the observation has no 'a', which its space has"),
    (spaces.Dict(a=BOX), None, "the observation has no 'a', which its space has"),
]


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(("space", "obs", "message"), NOT_NESTED_ALIKE)
def test_an_observation_that_is_not_nested_as_its_space_is_refused_by_name(space, obs, message):
    with pytest.raises(EnvError, match=f"failed at its first reset: ValueError: {message}"):
        EnvGroup(lambda: Gives(space, obs), 1, [0], name="some/env").reset()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Dict({(0, 1): spaces.Discrete(2)}),
            r"the Dict space obs has the key \(0, 1\); use text or a whole number",
        ),
        (spaces.Dict(a=spaces.Dict({2.5: spaces.Discrete(2)})), r"the Dict space obs/a has the key 2.5; use text"),
        (spaces.Box(-1, 1, (2,), np.longdouble), "the space obs has dtype float128; use float32 or float64"),
    ],
)
def test_spaces_that_no_checkpoint_can_record_are_refused_before_training(space, message):
    with pytest.raises(EnvError, match=message):
        list(space_leaves(space, "obs"))
    assert [leaf.name for leaf in space_leaves(spaces.Dict({0: spaces.Discrete(2)}), "obs")] == ["obs/0"]
