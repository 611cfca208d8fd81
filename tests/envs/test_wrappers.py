"""`env.wrappers`: order, arguments, look-up, refusals."""

import sys

import numpy as np
import pytest

from sfactory.envs import EnvError, EnvOptions, make_group

WRAP = """
def wrap(env, scale=1.0, shift=0.0):
    CALLS.append((scale, shift, env.unwrapped.__class__.__name__))
    return gymnasium.wrappers.TransformReward(env, lambda reward: scale * reward + shift)

class Numbered(gymnasium.Wrapper):
    def __init__(self, env, env_index, file=""):
        super().__init__(env)
        CALLS.append((env_index, file))

def forgets(env):
    pass

def no_env():
    pass

def imports(env):
    import no_such_package

def needs(env, size):
    return env

gymnasium.register("Mine-v0", entry_point=MyEnv)
"""


def group_of(wrappers, tables=None, name="my_file:MyEnv", num_envs=1, env_index=0):
    options = EnvOptions(wrappers=tuple(wrappers.split(",")), wrapper_settings=tables or {})
    return make_group(name, num_envs, list(range(num_envs)), options, env_index=env_index)


def reward(group):
    group.reset()
    return group.step({"action": np.zeros(group.num_envs, np.int64)}).reward[0]


@pytest.mark.parametrize("name", ["my_file:MyEnv", "gymnasium/my_file:Mine-v0", "gymnasium/CartPole-v1"])
def test_wrappers_are_around_every_single_environment(own_file, name):
    own_file("my_file.py", WRAP)
    group = group_of("my_file:wrap", {"my_file:wrap": {"scale": 3.0}}, name, num_envs=8)
    assert [type(env).__name__ for env in group.envs] == ["TransformReward"] * 8
    assert reward(group) == 3.0
    assert group.spec.protocol.endswith(", my_file:wrap(scale=3.0)")


def test_the_first_wrapper_is_the_innermost(own_file):
    """Twice the same wrapper: 1 -> 1 + 1 -> 2 + 1; with another order of two wrappers the shapes differ."""
    own_file("my_file.py", WRAP)
    assert reward(group_of("my_file:wrap,my_file:wrap", {"wrap": {"shift": 1.0}})) == 3.0
    tables = {"FrameStackObservation": {"stack_size": 4}}
    group = group_of("FrameStackObservation,FlattenObservation", tables)
    assert group.spec.obs["obs"].shape == (12,)
    group = group_of("FlattenObservation,FrameStackObservation", tables)
    assert group.spec.obs["obs"].shape == (4, 3)
    assert group.spec.protocol == "my_file:MyEnv, FlattenObservation, FrameStackObservation(stack_size=4)"


def test_lists_become_the_tuples_that_wrappers_of_gymnasium_expect(own_file):
    own_file("my_file.py", WRAP)
    assert group_of("ReshapeObservation", {"ReshapeObservation": {"shape": [3, 1]}}).spec.obs["obs"].shape == (3, 1)


def test_a_time_limit_among_the_wrappers_is_the_limit_of_the_spec(own_file):
    own_file("my_file.py", WRAP)
    group = group_of("TimeLimit,TimeAwareObservation", {"TimeLimit": {"max_episode_steps": 2}})
    assert group.spec.max_episode_steps == 2
    group.reset()
    group.step({"action": np.array([0])})
    assert group.step({"action": np.array([0])}).truncated[0]


def test_a_wrapper_receives_the_index_of_its_copy(own_file):
    own_file("my_file.py", WRAP)
    group_of("my_file:Numbered", {"Numbered": {"file": "a{index}"}}, num_envs=2, env_index=5)
    assert sys.modules["my_file"].CALLS == [(5, "a5"), (6, "a6")]


@pytest.mark.parametrize(
    ("wrappers", "tables", "message"),
    [
        ("FrameStackObservatoin", {}, "env.wrappers FrameStackObservatoin: gymnasium.wrappers has no such wrapper; did "
         "you mean FrameStackObservation?; write MODULE:NAME for one of your own"),
        ("vector", {}, "env.wrappers vector: gymnasium.wrappers has no such wrapper; there are AddRenderObservation, "),
        ("my_file:wrapp", {}, "my_file:wrapp: my_file has no wrapp; did you mean wrap?"),
        ("no_file:wrap", {}, "no_file:wrap: no module no_file: there is no no_file.py in "),
        ("FrameStackObservation", {}, "the wrapper FrameStackObservation needs 'stack_size': "
         "--env.wrapper-settings.FrameStackObservation.stack-size VALUE"),
        ("my_file:needs", {}, "the wrapper my_file:needs needs 'size': --env.wrapper-settings.needs.size VALUE, "
         "in Python env={'wrapper_settings': {'needs': {'size': VALUE}}}"),
        ("FrameStackObservation", {"FrameStackObservation": {"stak_size": 4}},
         "the wrapper FrameStackObservation takes no 'stak_size'; did you mean stack_size?"),
        ("my_file:wrap", {"wrp": {}}, "env.wrapper-settings wrp: env.wrappers names no such wrapper; there are "
         "my_file:wrap"),
        ("my_file:wrap", {"wrap": 3}, "env.wrapper-settings wrap: expected a table of arguments, got 3"),
        ("my_file:forgets", {}, "the wrapper my_file:forgets returned an object of type NoneType, expected a "
         "gymnasium.Env"),
        ("my_file:imports", {}, "the wrapper my_file:imports needs a package: ModuleNotFoundError: No module"),
        ("my_file:no_env", {}, "the wrapper my_file:no_env takes 0 arguments, it must take the environment first"),
    ],
)  # fmt: skip
def test_wrappers_that_cannot_be_used_are_refused_in_one_line(own_file, wrappers, tables, message):
    own_file("my_file.py", WRAP)
    with pytest.raises(EnvError) as caught:
        group_of(wrappers, tables)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_wrapper_settings_without_wrappers_are_refused(own_file):
    own_file("my_file.py")
    with pytest.raises(EnvError, match=r"names no such wrapper; env\.wrappers is empty"):
        make_group("my_file:MyEnv", 1, [0], EnvOptions(wrapper_settings={"TimeLimit": {"max_episode_steps": 3}}))


def test_a_wrapper_that_raises_is_a_fault_of_the_environment(own_file):
    own_file("my_file.py", "def wrap(env):\n    raise OSError('no display')\n")
    with pytest.raises(EnvError, match=r"^the wrapper my_file:wrap could not be built: OSError: no display$") as caught:
        group_of("my_file:wrap")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("name", ["minatar/breakout", "memory/tmaze", "faults/count"])
def test_families_that_step_no_gymnasium_environments_refuse_wrappers(name):
    with pytest.raises(EnvError, match=rf"^{name}: env\.wrappers is for the families gymnasium and pettingzoo"):
        group_of("TimeAwareObservation", name=name)
