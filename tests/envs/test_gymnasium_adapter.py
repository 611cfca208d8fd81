"""EnvGroup: autoreset, nested spaces, checks of data, failing environments."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from sfactory.envs import EnvError, EnvOptions, info_numbers, make_group
from sfactory.envs.gymnasium_adapter import EnvGroup


class Counter(gymnasium.Env):
    """Environment that observes step, episode and first seed, ends after `length` steps and keeps its actions."""

    def __init__(self, length=3, truncates=False, at=None, result=None, observation_space=None, action_space=None):
        self.length, self.truncates, self.at, self.result = length, truncates, at, result
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = action_space or spaces.Discrete(3, start=5)
        self.t, self.episode, self.total, self.first_seed, self.closed, self.actions = 0, -1, 0, None, False, []

    def obs(self):
        return np.array([self.t, self.episode, self.first_seed or 0], np.float64)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            assert self.first_seed is None, "a seed belongs to the first reset only"
            self.first_seed = seed
        self.t, self.episode = 0, self.episode + 1
        return self.obs(), {}

    def step(self, action):
        self.actions.append(action)
        self.t, self.total = self.t + 1, self.total + 1
        if self.total == self.at:
            return self.result(self)
        end = self.t >= self.length
        return self.obs(), float(self.t), end and not self.truncates, end and self.truncates, {}

    def close(self):
        self.closed = True


def group_of(*envs, seeds=None):
    """Build a group of the given environments; replacements are plain Counters."""
    remaining = list(envs)
    seeds = list(range(100, 100 + len(envs))) if seeds is None else seeds
    return EnvGroup(lambda: remaining.pop(0) if remaining else Counter(), len(envs), seeds, name="test/counter")


def play(group, steps, action=0):
    """Return copied observations and steps: lists of length `steps` + 1 and `steps`."""
    obs, taken = [group.reset()["obs"].copy()], []
    for _ in range(steps):
        taken.append(group.step({"action": np.full(group.num_envs, action)}))
        obs.append(taken[-1].obs["obs"].copy())
    return obs, taken


@pytest.mark.parametrize("truncates", [False, True])
def test_env_group_follows_next_step_autoreset(truncates):
    obs, taken = play(group_of(Counter(length=3, truncates=truncates)), 6)
    assert [row[0, 0] for row in obs] == [0, 1, 2, 3, 0, 1, 2]  # 3 is the final observation
    assert [row[0, 1] for row in obs] == [0, 0, 0, 0, 1, 1, 1]
    ends = [bool(step.truncated[0] if truncates else step.terminated[0]) for step in taken]
    assert ends == [False, False, True, False, False, False]
    assert not any(step.terminated[0] if truncates else step.truncated[0] for step in taken)
    assert [bool(step.valid[0]) for step in taken] == [True, True, True, False, True, True]
    assert [bool(step.first[0]) for step in taken] == [False, False, False, True, False, False]
    assert [step.reward[0] for step in taken] == [1, 2, 3, 0, 1, 2]
    assert taken[0].reward.dtype == np.float32


def test_env_group_ignores_the_action_of_a_reset_step_even_if_it_is_illegal():
    env = Counter(length=1)
    group = group_of(env)
    group.reset()
    group.step({"action": np.array([2])})
    step = group.step({"action": np.array([99])})
    assert not step.valid[0]
    assert not step.faults
    assert env.actions == [7]


def test_env_group_reports_complete_episodes_with_raw_return_and_length():
    _, taken = play(group_of(Counter(length=2), Counter(length=3)), 7)
    ended = [(t, *episode) for t, step in enumerate(taken) for episode in step.episodes]
    assert ended == [(1, 0, 3.0, 2), (2, 1, 6.0, 3), (4, 0, 3.0, 2), (6, 1, 6.0, 3)]


def test_env_group_gives_every_environment_its_seed_once():
    obs, _ = play(group_of(Counter(), Counter(), seeds=[7, 9]), 5)
    assert obs[-1][:, 2].tolist() == [7, 9]


def raises(env):
    raise RuntimeError("a broken environment")


INVALID = {
    "raises": (raises, "a broken environment"),
    "NaN observation": (lambda env: (np.array([np.nan, 0, 0]), 0.0, False, False, {}), "NaN"),
    "infinite reward": (lambda env: (env.obs(), np.inf, False, False, {}), "infinity"),
    "a terminal with NaN": (lambda env: (env.obs(), np.nan, True, False, {}), "NaN"),
    "wrong shape": (lambda env: (np.zeros((1, 3)), 0.0, False, False, {}), r"shape (1, 3), but its space has (3,)"),
    "shape that would broadcast": (lambda env: (np.zeros(1), 0.0, False, False, {}), "shape (1,)"),
    "wrong dtype": (lambda env: (np.zeros(3, complex), 0.0, False, False, {}), "dtype complex128"),
    "no reward": (
        lambda env: (env.obs(), None, False, False, {}),
        "the reward is None of type NoneType, it must be one number",
    ),
    "four values": (lambda env: (env.obs(), 0.0, False, {}), "step() returned 4 values, it must return five"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_env_group_replaces_a_failing_environment_and_marks_a_reset_row(kind):
    result, reason = INVALID[kind]
    bad, good = Counter(length=9, at=2, result=result), Counter(length=9)
    group = group_of(good, bad)
    obs, taken = play(group, 4)
    failed = taken[1]
    (report,) = failed.faults
    assert report.env == 1
    assert reason in report.message.splitlines()[0]
    assert "seed 101, step 1" in report.message.splitlines()[0]
    said = report.message.splitlines()[0]
    if kind == "raises":  # the traceback shows the line, and the action may be why
        assert said.endswith(", action np.int64(5))")
    else:
        assert f"{__file__}, line {Counter.step.__code__.co_firstlineno}" in said
        assert "action" not in said
    assert "Traceback" in report.message or "infinity" in report.message
    assert failed.valid.tolist() == [True, False]
    assert failed.first.tolist() == [False, True]
    assert failed.reward.tolist() == [2.0, 0.0]
    assert not failed.terminated.any()
    assert not failed.truncated.any()
    assert bad.closed
    assert obs[2][1, 0] == 0  # first observation of the replacement
    assert obs[2][1, 2] not in (100, 101)  # its seed is new
    assert obs[3][:, 0].tolist() == [3, 1]  # the other environment continues
    assert taken[2].valid.all()


def test_env_group_shortens_the_report_of_an_exception_with_a_long_text():
    def fails(env):
        raise ValueError(f"the state was {'1, ' * 10**6}at last")

    _, taken = play(group_of(Counter(length=9, at=2, result=fails)), 2)
    (report,) = taken[1].faults
    reason, _, trace = report.message.partition("\n")
    assert len(reason) < 1000
    assert reason.startswith("ValueError: the state was 1, 1, ")
    assert reason.endswith("at last (seed 100, step 1 of the episode, action np.int64(5))")
    assert len(trace) < 30_000
    assert "in fails" in trace


def test_env_group_drops_an_episode_that_a_fault_ended():
    _, taken = play(group_of(Counter(length=9, at=2, result=raises)), 5)
    assert [tuple(e) for step in taken for e in step.episodes] == [(0, 6.0, 3)]  # episode of the replacement


@pytest.mark.parametrize("action", [3, -1, 2**40])
def test_env_group_never_passes_an_action_out_of_range(action):
    env = Counter()
    group = group_of(env, Counter())
    group.reset()
    step = group.step({"action": np.array([action, 0])})
    assert env.actions == []
    assert step.valid.tolist() == [False, True]
    assert f"illegal action [{action}]" in step.faults[0].message


def test_env_group_clips_box_actions_and_stops_nan():
    box = spaces.Box(np.array([-1, -2], np.float32), np.array([1, 2], np.float32))
    envs = [Counter(action_space=box) for _ in range(3)]
    remaining = [*envs, Counter(action_space=box), Counter(action_space=box)]  # the last two replace failed ones
    group = EnvGroup(lambda: remaining.pop(0), 3, [0, 1, 2], name="test/box")
    group.reset()
    action = np.array([[0.5, -9.0], [np.nan, 0.0], [7.0, np.inf]], np.float32)
    sample = action.copy()
    step = group.step({"action": action})
    np.testing.assert_array_equal(envs[0].actions[0], np.array([0.5, -2.0], np.float32))
    assert envs[1].actions == envs[2].actions == []
    assert step.valid.tolist() == [True, False, False]
    np.testing.assert_array_equal(action, sample)  # the sample itself is not changed
    leaf = group.spec.actions["action"]
    assert (leaf.kind, leaf.shape, leaf.sizes, leaf.low, leaf.high) == ("box", (2,), (2,), (-1, -2), (1, 2))


def test_env_group_adds_the_start_of_a_discrete_space():
    env = Counter(action_space=spaces.Discrete(3, start=5))
    group = group_of(env)
    group.reset()
    group.step({"action": np.array([2])})
    assert env.actions == [7]
    assert group.spec.actions["action"].sizes == (3,)


class Nested(Counter):
    def obs(self):
        return {
            "image": np.full((2, 2), self.t, np.uint8),
            "inner": {"place": 3, "vector": np.array([self.t], np.float64)},
            "pair": (np.array([True, False]), [1.5]),
        }


def test_env_group_flattens_nested_observations_and_actions():
    observation = spaces.Dict(
        image=spaces.Box(0, 255, (2, 2), np.uint8),
        inner=spaces.Dict(place=spaces.Discrete(4), vector=spaces.Box(-9, 9, (1,), np.float64)),
        pair=spaces.Tuple([spaces.Box(0, 1, (2,), bool), spaces.Box(-9, 9, (1,))]),
    )
    action = spaces.Tuple(
        [spaces.MultiDiscrete([2, 3]), spaces.Dict(go=spaces.Box(-1, 1, (1,)), how=spaces.MultiBinary(2))]
    )
    envs = [Nested(observation_space=observation, action_space=action) for _ in range(3)]
    remaining = list(envs)
    group = EnvGroup(lambda: remaining.pop(0), 2, [0, 1], name="test/nested")
    leaves = {name: (leaf.shape, leaf.dtype) for name, leaf in group.spec.obs.items()}
    assert leaves == {
        "obs/image": ((2, 2), "uint8"),
        "obs/inner/place": ((4,), "bool"),
        "obs/inner/vector": ((1,), "float32"),
        "obs/pair/0": ((2,), "bool"),
        "obs/pair/1": ((1,), "float32"),
    }
    heads = {name: (leaf.kind, leaf.shape, leaf.sizes) for name, leaf in group.spec.actions.items()}
    assert heads == {
        "action/0": ("discrete", (2,), (2, 3)),
        "action/1/go": ("box", (1,), (1,)),
        "action/1/how": ("discrete", (2,), (2, 2)),
    }
    group.reset()
    step = group.step(
        {
            "action/0": np.array([[1, 2], [0, 3]]),  # the second row's 3 is illegal
            "action/1/go": np.array([[0.5], [0.5]], np.float32),
            "action/1/how": np.array([[0, 1], [1, 1]]),
        }
    )
    first, second = envs[0].actions[0]
    assert first.tolist() == [1, 2]
    assert {key: value.tolist() for key, value in second.items()} == {"go": [0.5], "how": [0, 1]}
    assert step.obs["obs/image"][0].tolist() == [[1, 1], [1, 1]]
    assert step.obs["obs/inner/place"][0].tolist() == [False, False, False, True]
    assert step.obs["obs/pair/1"][0].tolist() == [1.5]
    assert envs[1].actions == []
    assert step.valid.tolist() == [True, False]


def test_env_group_names_an_unsupported_space():
    with pytest.raises(EnvError, match=r"observation space obs: Text.* is not supported; use Box"):
        group_of(Counter(observation_space=spaces.Text(5)))
    with pytest.raises(EnvError, match=r"action space action/0: Text"):
        group_of(Counter(action_space=spaces.Tuple([spaces.Text(5)])))


def test_env_group_needs_equal_spaces():
    with pytest.raises(EnvError, match="same spaces"):
        group_of(Counter(), Counter(action_space=spaces.Discrete(4)))


def test_env_group_repeats_the_message_of_a_constructor_that_fails():
    def build():
        raise OSError("no such\nlevel")

    with pytest.raises(EnvError, match=r"mygame could not be built: OSError: no such level"):
        EnvGroup(build, 1, [0], name="mygame")


@pytest.mark.usefixtures("short_retries")
def test_env_group_repeats_the_message_of_a_first_reset_that_always_fails():
    class Unready(Counter):
        def reset(self, **_):
            raises(self)

    with pytest.raises(EnvError, match="failed at its first reset: RuntimeError: a broken environment"):
        EnvGroup(Unready, 2, [0, 1], name="test/unready").reset()


def test_env_group_resets_without_the_seed_the_second_time():
    group = group_of(Counter(length=9))
    group.reset()
    group.step({"action": np.array([0])})
    assert group.reset()["obs"][0].tolist() == [0, 1, 100]
    step = group.step({"action": np.array([0])})
    assert step.valid[0]
    assert step.reward[0] == 1


def masked(actions, size):
    """Build a group whose Dict observation has a mask with `size` flags."""
    space = spaces.Dict({"action_mask": spaces.Box(0, 1, (size,), np.int8), "x": spaces.Box(-1, 1, (2,), np.float32)})
    return group_of(Counter(observation_space=space, action_space=actions))


def test_mask_leaf_is_found_by_name_and_must_fit_the_actions():
    assert masked(spaces.Discrete(4), 4).spec.mask == "obs/action_mask"
    assert masked(spaces.MultiDiscrete([2, 3]), 5).spec.mask == "obs/action_mask"
    assert group_of(Counter()).spec.mask == ""
    for actions, size in ((spaces.Discrete(4), 3), (spaces.Box(-1, 1, (4,)), 4)):
        with pytest.raises(EnvError, match="cannot mask these actions"):
            masked(actions, size)


def test_env_group_reports_the_numbers_of_info_at_the_end_of_an_episode():
    class Informed(Counter):
        def step(self, action):
            obs, reward, terminated, truncated, _ = super().step(action)
            info = {"is_success": np.bool_(True), "distance": 0.3, "level": np.int64(2), "TimeLimit.truncated": False}
            info |= {"text": "x", "array": np.zeros(3), "nan": np.nan, "none": None, 7: 1.0, "step": self.t}
            return obs, reward, terminated, truncated, info

    group = EnvGroup(lambda: Informed(length=3), 1, [0], name="x")
    group.reset()
    steps = [group.step({"action": np.zeros(1, int)}) for _ in range(4)]
    assert [step.infos for step in steps] == [
        (),
        (),
        ((0, {"is_success": 1.0, "distance": 0.3, "level": 2.0, "step": 3.0}),),
        (),
    ]


def test_info_numbers_takes_any_info_and_limits_its_size():
    assert info_numbers(None) == info_numbers([1.0]) == info_numbers({}) == {}
    assert len(info_numbers({f"number {i}": i for i in range(1000)})) == 20
    assert info_numbers({"a" * 61: 1, "": 1, "a\nb": 1}) == {}


@pytest.mark.parametrize("keys", [(), ("distance",)])
@pytest.mark.parametrize("solved", [True, np.bool_(True), np.array([True]), np.array(1.0)])
def test_info_numbers_never_leaves_out_is_success(solved, keys):
    """Robotics tasks report it, some as an array; other numbers that are listed, or come first, do not hide it."""
    info = {f"number {i}": i for i in range(30)} | {"distance": 0.5, "is_success": solved}
    found = info_numbers(info, keys)
    assert found["is_success"] == 1.0
    assert len(found) == (2 if keys else 20)


@pytest.mark.parametrize("keys", [(), ("a",)])
@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.float16(0.5), 0.5),
        (np.uint8(7), 7.0),
        (np.bool_(True), 1.0),
        (np.longdouble(2), 2.0),
        (np.timedelta64(5, "s"), None),  # a whole number to NumPy; float() of it raised, and ended the sampler
        (np.datetime64("2026-01-01"), None),
        (np.complex64(1 + 2j), None),
        (np.float32("nan"), None),
        (10**400, None),
        ("1", None),
        (None, None),
    ],
)
def test_info_numbers_takes_numbers_of_numpy_and_leaves_out_the_rest(value, number, keys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert info_numbers({"a": value}, keys) == ({} if number is None else {"a": number})


def test_info_numbers_takes_the_listed_names_also_from_tables_and_arrays_of_one_number():
    info = {"success": True, "goal": {"x": np.float32(0.5), "deep": {"y": 2}}, "a.b": 3, "one": np.array([4.0]), "n": 9}
    info |= {"many": np.zeros(2), "text": "5", "nan": np.nan, "complex": np.complex64(1), "huge": 2**2000, "none": None}
    names = (
        "goal.x",
        "goal.deep.y",
        "a.b",
        "one",
        "success",
        "goal",
        "goal.z",
        "many",
        "text",
        "nan",
        "complex",
        "huge",
        "none",
    )
    found = info_numbers(info, names)
    assert found == {"goal.x": 0.5, "goal.deep.y": 2.0, "a.b": 3.0, "one": 4.0, "success": 1.0}
    assert list(found) == ["goal.x", "goal.deep.y", "a.b", "one", "success"]


@pytest.mark.parametrize("name", ["gymnasium/CartPole-v1", "gymnasium/Hopper-v5", "memory/tmaze"])
def test_listed_infos_are_read_from_single_environments(name):
    group = make_group(name, 1, [0], EnvOptions(info_keys=("x_position",)))
    try:
        assert type(group) is EnvGroup
        assert group.info_keys == ("x_position",)
    finally:
        group.close()


def test_listed_infos_are_refused_where_native_code_reports_none():
    with pytest.raises(
        EnvError, match=r"env.info-keys is_success: the family minatar steps its environments in native"
    ):
        make_group("minatar/breakout", 1, [0], EnvOptions(info_keys=("is_success",)))


BOX = spaces.Box(-1, 1, (3,), np.float64)
MOVED = [
    ("action_space", spaces.Discrete(4, start=5), r"the action space is Discrete\(4, start=5\)"),
    ("action_space", spaces.Discrete(3, start=6), r"the action space is Discrete\(3, start=6\)"),
    ("observation_space", BOX, r"the observation space is Box\(-1.0, 1.0, \(3,\), float64\)"),
]


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(("name", "space", "message"), MOVED)
def test_env_group_refuses_a_space_that_changes_after_the_environment_was_built(name, space, message):
    class Moves(Counter):
        def reset(self, **arguments):
            result = super().reset(**arguments)
            if self.episode == self.moves_at:
                setattr(self, name, space)
            return result

    Moves.moves_at = 0
    with pytest.raises(EnvError, match=f"{message}, and was .* when it was built; a space must not change"):
        EnvGroup(Moves, 1, [0], name="test/moves").reset()
    Moves.moves_at = 1
    _, taken = play(EnvGroup(lambda: Moves(length=2), 1, [0], name="test/moves"), 4)
    assert [len(step.faults) for step in taken] == [0, 0, 1, 0]


def test_env_group_refuses_another_space_of_an_environment_that_replaces_a_failed_one():
    envs = [Counter(length=9, at=2, result=raises), Counter(action_space=spaces.Discrete(9)), Counter()]
    group = EnvGroup(lambda: envs.pop(0), 1, [0], name="test/counter")
    _, taken = play(group, 3)
    assert taken[1].faults
    assert group.envs[0].action_space == spaces.Discrete(3, start=5)  # the third one: the second was refused
    assert not envs


def test_env_group_accepts_spaces_that_are_made_for_every_look():
    class Fresh(Counter):
        action_space = property(lambda self: spaces.Discrete(3, start=5), lambda self, space: None)

    _, taken = play(EnvGroup(lambda: Fresh(length=2), 1, [0], name="test/fresh"), 6)
    assert not any(step.faults for step in taken)


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(("dtype", "value"), [(np.float32, np.nan), (np.float64, np.nan), (np.float64, 1e39)])
def test_env_group_says_where_a_reset_returned_no_finite_number(dtype, value):
    class Unknown(Counter):
        def __init__(self):
            super().__init__(observation_space=spaces.Box(-np.inf, np.inf, (3,), dtype))

        def obs(self):
            return np.array([value, 0, 0], dtype)

    place = r"NaN or infinity in obs, returned by reset, .*test_gymnasium_adapter.py, line"
    with pytest.raises(EnvError, match=place) as error:
        EnvGroup(Unknown, 1, [0], name="test/unknown").reset()
    too_large = "observations are kept as float32, which ends at 3.4e38"
    assert (too_large in str(error.value)) == (value == 1e39)


@pytest.mark.usefixtures("short_retries")
@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (np.zeros(3), "reset() returned a ndarray of shape (3,), it must return two values"),
        ((np.zeros(2), {}), "obs has shape (2,), but its space has (3,)"),
        ((np.zeros(3, complex), {}), "return float32 (as array.astype), or declare the space with dtype=complex128"),
    ],
)
def test_env_group_says_where_a_reset_returned_something_wrong(result, reason):
    class Wrong(Counter):
        def reset(self, **kwargs):
            return result

    with pytest.raises(EnvError) as error:
        EnvGroup(Wrong, 1, [0], name="test/wrong").reset()
    assert reason in str(error.value)
    assert str(error.value).endswith(f"; see reset, {__file__}, line {Wrong.reset.__code__.co_firstlineno}")


def test_env_group_reports_no_long_action():
    group = EnvGroup(
        lambda: Counter(9, at=1, result=raises, action_space=spaces.Box(-1, 1, (5000,))), 1, [0], name="test/wide"
    )
    group.reset()
    (report,) = group.step({"action": np.zeros((1, 5000), np.float32)}).faults
    assert len(report.message.splitlines()[0]) < 400
    assert ", action array([0., 0., " in report.message.splitlines()[0]


class Unlike(gymnasium.Space):
    """A space that is equal to itself only."""


def test_env_group_accepts_leaves_of_a_kind_that_cannot_be_compared():
    def build():
        return Counter(observation_space=spaces.Dict(x=spaces.Discrete(9), other=Unlike((2,), np.float32)), length=2)

    class Seen(gymnasium.ObservationWrapper):
        def observation(self, obs):
            return {"x": int(obs[0]), "other": None}

    group = EnvGroup(lambda: Seen(build()), 2, [0, 1], name="test/other", drop=["other"])
    assert list(group.spec.obs) == ["obs/x"]
    group.reset()
    assert not any(group.step({"action": np.zeros(2, int)}).faults for _ in range(5))
