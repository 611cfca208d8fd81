"""The spec, the samplers and an evaluation step the same environments: single ones or a vector environment."""

import numpy as np
import pytest

from sfactory.envs import EnvError, EnvOptions, check_spaces, make_group, make_spec

TWINS = """
class Vec(gymnasium.vector.VectorEnv):
    metadata, n, gain = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}, 5, 1.0
    def __init__(self, num_envs=1, file="", **settings):
        CALLS.append((num_envs, file))
        self.num_envs, self.single_action_space = num_envs, spaces.Discrete(2)
        self.single_observation_space = spaces.Box(-1, 1, (self.n,), np.float32)
    def reset(self, **options):
        self.t = np.zeros(self.num_envs, int)
        return np.zeros((self.num_envs, self.n), np.float32), {}
    def step(self, action):
        over = self.t >= 20
        self.t = np.where(over, 0, self.t + 1)
        never, rewards = np.zeros(self.num_envs, bool), np.full((self.num_envs, 1), self.gain)
        return np.zeros((self.num_envs, self.n), np.float32), rewards, never, self.t >= 20, {}

class Clipped(Vec):
    n, gain = 3, 0.1

class Pairs(Vec):
    def __init__(self, num_envs=1):
        super().__init__(num_envs)
        self.single_action_space = spaces.Tuple([spaces.Discrete(2), spaces.Dict(x=spaces.Box(-1, 1, (1,)))])
    def step(self, action):
        CALLS.append(action)
        return super().step(action)

gymnasium.register("TwoFaces-v0", entry_point=MyEnv, vector_entry_point=Vec)
gymnasium.register("TwoRewards-v0", entry_point=MyEnv, vector_entry_point=Clipped)
gymnasium.register("OnlyVector-v0", vector_entry_point=Vec)
gymnasium.register("Pairs-v0", vector_entry_point=Pairs)
"""


def steps(group):
    group.reset()
    return group.step({"action": np.zeros(group.num_envs, np.int64)})


@pytest.mark.parametrize("prefix", ["my_file:", ""])
@pytest.mark.parametrize("env_id", ["TwoFaces-v0", "TwoRewards-v0"])
@pytest.mark.parametrize("num_envs", [1, 4, 16, 32])
def test_an_id_of_another_package_is_stepped_as_single_environments(own_file, prefix, env_id, num_envs):
    own_file("my_file.py", TWINS)
    make_spec("my_file:MyEnv")  # imports the file, which registers the ids
    name = f"gymnasium/{prefix}{env_id}"
    group = make_group(name, num_envs, list(range(num_envs)))
    assert group.spec == make_spec(name)
    assert group.spec.obs["obs"].shape == (3,)
    assert steps(group).reward.tolist() == [1.0] * num_envs


@pytest.mark.parametrize("num_envs", [1, 3, 16])
def test_cartpole_is_stepped_by_its_vector_environment_whatever_the_number_of_copies(num_envs):
    group = make_group("gymnasium/CartPole-v1", num_envs, list(range(num_envs)))
    assert type(group).__name__ == "GymnasiumVectorGroup"
    assert group.spec == make_spec("gymnasium/CartPole-v1")
    single = make_group("gymnasium/CartPole-v1", num_envs, list(range(num_envs)), exact=True)
    assert type(single).__name__ == "EnvGroup"
    assert single.spec == group.spec


@pytest.mark.parametrize(
    "options",
    [
        {"wrappers": ("TimeAwareObservation",)},
        {"settings": {"max_episode_steps": -1}},
        {"settings": {"disable_env_checker": False}},
        {"settings": {"render_mode": "rgb_array"}},
    ],
)
def test_what_a_vector_environment_does_not_take_is_stepped_as_single_environments(options):
    assert type(make_group("gymnasium/CartPole-v1", 8, list(range(8)), EnvOptions(**options))).__name__ == "EnvGroup"


def test_a_vector_environment_with_other_spaces_gives_way_to_single_ones(monkeypatch):
    """Also for ids of gymnasium itself; nothing else says that the two are the same environment."""
    from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
    from gymnasium.spaces import Box

    make = CartPoleVectorEnv.__init__

    def other(self, *args, **kwargs):
        make(self, *args, **kwargs)
        self.single_observation_space = Box(-1, 1, (5,), np.float32)

    monkeypatch.setattr(CartPoleVectorEnv, "__init__", other)
    group = make_group("gymnasium/CartPole-v1", 8, list(range(8)))
    assert type(group).__name__ == "EnvGroup"
    assert group.spec.obs["obs"].shape == (4,)


@pytest.mark.parametrize("num_envs", [1, 16])
def test_an_id_without_single_environments_is_stepped_by_its_vector_environment(own_file, num_envs):
    own_file("my_file.py", TWINS)
    options = EnvOptions({"file": "a{index}"})
    group = make_group("gymnasium/my_file:OnlyVector-v0", num_envs, list(range(num_envs)), options, env_index=3)
    assert group.spec.obs["obs"].shape == (5,)
    assert steps(group).reward.tolist() == [1.0] * num_envs
    assert group.env.unwrapped.spec.kwargs["file"] == "a3"


def test_a_vector_environment_receives_nested_actions(own_file):
    own_file("my_file.py", TWINS)
    group = make_group("gymnasium/my_file:Pairs-v0", 2, [0, 1])
    group.reset()
    group.step({"action/0": np.array([0, 1]), "action/1/x": np.array([[0.5], [7.0]], np.float32)})
    import my_file

    first, second = my_file.CALLS[-1]
    assert first.tolist() == [0, 1]
    assert second["x"].tolist() == [[0.5], [1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            EnvOptions(wrappers=("TimeAwareObservation",)),
            "env.wrappers needs single environments, and this id has a vector",
        ),
        (
            EnvOptions({"num_envs": 3}),
            "the setting 'num_envs' cannot reach the environment, because gymnasium.make_vec has",
        ),
    ],
)
def test_what_needs_single_environments_is_refused_where_there_are_none(own_file, options, message):
    own_file("my_file.py", TWINS)
    with pytest.raises(EnvError) as caught:
        make_group("gymnasium/my_file:OnlyVector-v0", 2, [0, 1], options)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_check_spaces_names_the_leaf_that_differs_from_the_spec_of_the_run(own_file):
    own_file("my_file.py", "class Wide(MyEnv):\n    observation_space = spaces.Box(-1, 1, (4,), np.float32)\n")
    spec, group = make_spec("my_file:MyEnv"), make_group("my_file:MyEnv", 1, [0])
    assert check_spaces(spec, group) is group
    with pytest.raises(
        EnvError, match=r"my_file:Wide: obs obs \(4,\) float32 is not obs \(3,\) float32, which the first"
    ):
        check_spaces(spec, make_group("my_file:Wide", 1, [0]))


FLAGS = """
class Flags(gymnasium.vector.VectorEnv):
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
    def __init__(self, num_envs=1, kind=""):
        self.num_envs, self.kind, self.single_action_space = num_envs, kind, spaces.Discrete(2)
        self.single_observation_space = spaces.Box(0, 9, (1,), np.float32)
    def reset(self, **options):
        self.t = np.zeros(self.num_envs, int)
        return self.t[:, None].astype(np.float32), {}
    def step(self, action):
        self.t = np.where(self.t == 2, 0, self.t + 1)
        flags, never, rewards = self.t == 2, np.zeros(self.num_envs), np.ones(self.num_envs)
        kinds = {"int": np.int64, "float": np.float32, "column": bool, "uint8": np.uint8, "list": bool}
        flags, never = flags.astype(kinds.get(self.kind, bool)), never.astype(kinds.get(self.kind, bool))
        if self.kind == "column":
            flags, never = flags[:, None], never[:, None]
        if self.kind == "list":
            flags, never = flags.tolist(), never.tolist()
        if self.kind == "two":
            flags = flags * 2
        if self.kind == "few":
            flags = flags[:1]
        if self.kind == "none":
            never = None
        return self.t[:, None].astype(np.float32), rewards, flags, never, {}

gymnasium.register("Flags-v0", vector_entry_point=Flags)
"""


def steps_of(group, count):
    return [group.step({"action": np.zeros(3, np.int64)}) for _ in range(count)]


def flags_group(kind):
    return make_group("gymnasium/my_file:Flags-v0", 3, [0, 1, 2], EnvOptions({"kind": kind}))


@pytest.mark.parametrize("kind", ["bool", "int", "float", "uint8", "column", "list"])
def test_flags_of_a_vector_environment_are_booleans_of_any_kind(own_file, kind):
    own_file("my_file.py", FLAGS)
    group = flags_group(kind)
    group.reset()
    taken = steps_of(group, 6)
    for name, rows in (("terminated", "010010"), ("truncated", "000000"), ("valid", "110110"), ("first", "001001")):
        arrays = [getattr(step, name) for step in taken]
        assert all(array.dtype == bool for array in arrays), name
        assert [array.tolist() for array in arrays] == [[flag == "1"] * 3 for flag in rows], name
    assert [step.reward.tolist() for step in taken] == [[float(row == "1")] * 3 for row in "110110"]
    assert [len(step.episodes) for step in taken] == [0, 3, 0, 0, 3, 0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("two", "terminated must be True or False"),
        ("few", "terminated has shape (1,), expected (3,)"),
        ("none", "truncated has shape (), expected (3,)"),
    ],
)
def test_other_flags_of_a_vector_environment_are_refused(own_file, kind, message):
    own_file("my_file.py", FLAGS)
    group = flags_group(kind)
    group.reset()
    with pytest.raises(ValueError) as caught:
        steps_of(group, 3)
    assert message in str(caught.value)


OTHER_BOUNDS = """
class Bounds(MyEnv):
    def __init__(self, high=1.0, start=0, kind="box"):
        self.action_space = spaces.Discrete(3, start=start)
        if kind == "box":
            self.action_space = spaces.Box(-high, high, (2,), np.float32)
        self.observation_space = spaces.Box(-1, high, (3,), np.float32) if kind == "obs" else MyEnv.observation_space
"""


@pytest.mark.parametrize(
    ("settings", "other", "message"),
    [
        ({}, {"high": 2.0}, "action space Box(-2.0, 2.0, (2,), float32) is not Box(-1.0, 1.0, (2,), float32)"),
        ({"kind": "d"}, {"kind": "d", "start": 4}, "action space Discrete(3, start=4) is not Discrete(3)"),
        (
            {"kind": "obs"},
            {"kind": "obs", "high": 3},
            "observation space Box(-1.0, 3.0, (3,), float32) is not Box(-1.0,",
        ),
    ],
)
def test_check_spaces_names_other_bounds_and_starts(own_file, settings, other, message):
    own_file("my_file.py", OTHER_BOUNDS)
    spec = make_spec("my_file:Bounds", settings)
    group = make_group("my_file:Bounds", 1, [0], settings)
    assert check_spaces(spec, group) is group
    with pytest.raises(EnvError) as caught:
        check_spaces(spec, make_group("my_file:Bounds", 1, [0], other))
    assert message in str(caught.value)
    assert caught.value.fault


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED", ""])
def test_a_vector_environment_with_another_autoreset_says_what_it_must_do(own_file, mode):
    given = f'{{"autoreset_mode": gymnasium.vector.AutoresetMode.{mode}}}' if mode else "{}"
    own_file("my_file.py", f"{FLAGS}\nFlags.metadata = {given}\n")
    with pytest.raises(
        EnvError, match=rf"is (AutoresetMode.{mode}|None)\).*in the step after its last one.*NEXT_STEP$"
    ):
        flags_group("bool")
