"""Environments named by a class or function: `my_file:MyEnv`."""

import functools
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sfactory.config import presets
from sfactory.envs import EnvError, EnvOptions, is_python_target, make_group, make_spec, name_family, python_target
from sfactory.envs.python_target import accepts, asks_for

MORE = """
class Leveled(MyEnv):
    def __init__(self, level, speed=1.0):
        CALLS.append((level, speed))

class Indexed(MyEnv):
    def __init__(self, env_index=-1, port=""):
        CALLS.append(("built", env_index, port))
        self.number = env_index
    def step(self, action):
        if action == 1:
            raise RuntimeError("broken")
        return super().step(action)
    def close(self):
        CALLS.append(("closed", self.number))

class Child(Indexed):
    def __init__(self, **settings):
        super().__init__(**settings)

class Outer:
    class Inner(MyEnv):
        pass

def factory(**settings):
    CALLS.append(settings)
    return MyEnv()

def filmed(render_mode=None):
    CALLS.append(render_mode)
    return MyEnv()

def nothing():
    pass

def vector():
    return gymnasium.make_vec("CartPole-v1", 2)

def a_number():
    return 3

class NotAnEnv:
    pass

instance, number = MyEnv(), 3
"""


@pytest.mark.parametrize(
    ("name", "is_target"),
    [
        ("my_file:MyEnv", True), ("my_file.py:MyEnv", True), ("package.module:factory", True),
        ("sub/my_file.py:MyEnv", True), ("./my_file.py:MyEnv", True), ("/home/me/my_file.py:MyEnv", True),
        ("sub/gymnasium/my_file.py:MyEnv", True), ("gymnasium/my_file.py:Mine-v0", False),
        ("gymnasium/CartPole-v1", False), ("gymnasium/my_file:Mine-v0", False),
        ("gymnasium/ale_py:ALE/Pong-v5", False),
        ("pettingzoo/my_file:MyEnv", False), ("pettingzoo/my_file.py:MyEnv", False),
        ("minatar/breakout", False),
    ],
)  # fmt: skip
def test_is_python_target_needs_a_colon_before_a_slash_or_after_a_file(name, is_target):
    assert is_python_target(name) is is_target
    assert (name_family(name) == "") is is_target


@pytest.mark.parametrize(
    "target", ["my_file:MyEnv", "my_file.py:MyEnv", "./my_file.py:MyEnv", "my_file:factory", "my_file:Outer.Inner"]
)
def test_make_group_builds_a_class_or_function_of_a_file(own_file, target):
    own_file("my_file.py", MORE)
    group = make_group(target, 2, [1, 2])
    assert group.reset()["obs"].shape == (2, 3)
    assert group.step({"action": np.array([0, 0])}).reward.tolist() == [1.0, 1.0]
    assert group.spec.name == group.spec.protocol == target


def test_make_group_finds_files_of_other_folders_and_what_is_beside_them(own_file):
    own_file("sub/helper.py", "SIZE = 5\n", base=False)
    own_file("sub/deep_file.py", "import helper\nclass Deep(MyEnv):\n    size = helper.SIZE\n")
    here = own_file("sub/again_file.py")
    assert make_group("sub/deep_file.py:Deep", 1, [0]).envs[0].size == 5
    assert make_spec("sub.again_file:MyEnv").obs["obs"].shape == (3,)  # a folder is a package
    assert make_spec(f"{here}:MyEnv").obs["obs"].shape == (3,)  # the whole path


def test_make_group_prefers_a_file_of_the_current_folder_to_an_installed_module(own_file):
    """A file may be called like a module that is loaded already."""
    own_file("random.py")
    assert make_spec("random:MyEnv").obs["obs"].shape == (3,)
    assert sys.modules["random"].random() < 1.0


def test_settings_are_keyword_arguments_of_the_class_or_function(own_file):
    own_file("my_file.py", MORE)
    make_group("my_file:Leveled", 1, [0], {"level": [1, 2], "speed": 3})
    group = make_group("my_file:factory", 1, [0], {"seeds": 4, "env_id": "x", "drop": 1, "settings": 2, "exact": True})
    assert sys.modules["my_file"].CALLS == [
        ([1, 2], 3), {"seeds": 4, "env_id": "x", "drop": 1, "settings": 2, "exact": True},
    ]  # fmt: skip
    assert group.spec.protocol == "my_file:factory, drop=1, env_id=x, exact=True, seeds=4, settings=2"


CLASS_OR_FUNCTION = "name a class or a function, which is called for every copy"
EXPECTED_ENV = "expected a gymnasium environment (gymnasium.Env), got"
INHERIT = "a class must inherit from gymnasium.Env, with several agents from pettingzoo.ParallelEnv or AECEnv"
ERRORS = {
    "my_fiel:MyEnv": "no module my_fiel: there is no my_fiel.py in {folder}, and no package of this name is installed; "
    "did you mean my_file?",
    "no_package.part:MyEnv": "no module no_package.part: there is no no_package/part.py in {folder}, and no package of "
    "this name is installed",
    "my_fiel.py:MyEnv": "no file my_fiel.py in {folder}; did you mean my_file.py?",
    "sub/other.py:MyEnv": "no file sub/other.py in {folder}",
    "my_file:MyEnvv": "my_file has no MyEnvv; did you mean MyEnv?",
    "my_file:number": f"number is an object of type int; {CLASS_OR_FUNCTION}",
    "my_file:instance": f"instance is an object of type MyEnv; {CLASS_OR_FUNCTION}",
    "my_file:nothing": f"{EXPECTED_ENV} nothing; does the function end with `return env`?",
    "my_file:vector": f"{EXPECTED_ENV} a vector environment; return a single one, the copies are made by sfactory",
    "my_file:a_number": f"{EXPECTED_ENV} an object of type int; {INHERIT}",
    "my_file:NotAnEnv": f"{EXPECTED_ENV} an object of type NotAnEnv; {INHERIT}",
    "my_file:": "write MODULE:NAME, for example my_file:MyEnv",
    "imports:MyEnv": "imports imports no_such_package, which is not installed",
    "__main__:MyEnv": "worker processes do not run the main script; put MyEnv into a file of its own",
}


@pytest.mark.parametrize("target", ERRORS)
def test_make_group_says_in_one_line_why_a_target_cannot_be_used(own_file, target, tmp_path):
    own_file("my_file.py", MORE)
    own_file("imports.py", "import no_such_package\n")
    with pytest.raises(EnvError) as caught:
        make_group(target, 1, [0])
    expected = f"{target}: {ERRORS[target].format(folder=tmp_path)}"
    assert str(caught.value)[: len(expected)] == expected
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "broken:MyEnv: broken cannot be imported: SyntaxError: invalid syntax (broken.py, line 1)"),
        (
            "\n1 / 0\n",
            "broken:MyEnv: broken cannot be imported: ZeroDivisionError: division by zero (broken.py, line 2)",
        ),
    ],
)
def test_make_group_calls_a_file_that_raises_a_fault_of_the_environment(own_file, text, message):
    own_file("broken.py", text, base=False)
    with pytest.raises(EnvError) as caught:
        make_group("broken:MyEnv", 1, [0])
    assert str(caught.value) == message
    assert caught.value.exit_code == 6


def test_make_group_names_the_settings_that_a_class_does_not_take_or_needs(own_file):
    own_file("my_file.py", MORE)
    with pytest.raises(
        EnvError,
        match=r"^my_file:Leveled needs 'level': --env\.settings\.level VALUE, in Python "
        r"env=\{'settings': \{'level': VALUE\}\}$",
    ):
        make_group("my_file:Leveled", 1, [0])
    with pytest.raises(EnvError, match=r"^my_file:Leveled takes no 'levle'; did you mean level\?$"):
        make_group("my_file:Leveled", 1, [0], {"levle": 1})


@pytest.mark.parametrize("target", ["my_file:Indexed", "my_file:Child"])
def test_env_index_is_given_to_a_class_that_asks_for_it(own_file, target):
    own_file("my_file.py", MORE)
    make_group(target, 2, [0, 1], {"port": "p{index}"}, env_index=7)
    assert sys.modules["my_file"].CALLS == [("built", 7, "p7"), ("built", 8, "p8")]


def test_env_index_that_the_user_sets_is_kept(own_file):
    own_file("my_file.py", MORE)
    make_group("my_file:Indexed", 2, [0, 1], {"env_index": 3})
    assert sys.modules["my_file"].CALLS == [("built", 3, ""), ("built", 3, "")]


def test_index_is_replaced_in_nested_text(own_file):
    own_file("my_file.py", MORE)
    make_group("my_file:factory", 1, [0], {"files": ["a{index}", {"b": "{index}{index}"}], "n": 1}, env_index=4)
    assert sys.modules["my_file"].CALLS == [{"files": ["a4", {"b": "44"}], "n": 1}]


def test_an_environment_that_replaces_a_failed_one_has_its_index_and_is_built_after_the_close(own_file):
    own_file("my_file.py", MORE)
    group = make_group("my_file:Indexed", 2, [0, 1], env_index=5)
    group.reset()
    assert group.step({"action": np.array([0, 1])}).faults
    assert sys.modules["my_file"].CALLS[2:] == [("closed", 6), ("built", 6, "")]


@pytest.mark.usefixtures("short_retries")
def test_environments_are_closed_if_a_later_one_cannot_be_built(own_file):
    text = """
class Few(Indexed):
    def __init__(self, env_index):
        super().__init__(env_index)
        assert env_index < 2
"""
    own_file("my_file.py", MORE + text)
    with pytest.raises(EnvError, match="my_file:Few could not be built: AssertionError"):
        make_group("my_file:Few", 3, [0, 1, 2])
    assert [call for call in sys.modules["my_file"].CALLS if call[0] == "closed"] == [("closed", 0), ("closed", 1)]


def test_render_mode_is_given_for_a_video_only_to_what_accepts_it(own_file):
    own_file("my_file.py", MORE)
    for render in (False, True):
        make_group("my_file:filmed", 1, [0], render=render)
    make_group("my_file:MyEnv", 1, [0], render=True)  # has no such parameter
    make_group("my_file:filmed", 1, [0], {"render_mode": "human"})  # a setting of the user
    assert sys.modules["my_file"].CALLS == [None, "rgb_array", "human"]


class Base:
    def __init__(self, a, render_mode=None):
        pass


class PassesOn(Base):
    def __init__(self, *, b=1, **kwargs):
        super().__init__(**kwargs)


class TakesAll:
    def __init__(self, **kwargs):
        pass


class Nothing:
    pass


@pytest.mark.parametrize(
    ("function", "parameter", "asks", "may_take"),
    [
        (Base, "a", True, True), (Base, "b", False, False), (PassesOn, "render_mode", True, True),
        (PassesOn, "b", True, True), (PassesOn, "c", False, False), (TakesAll, "a", False, True),
        (Nothing, "a", False, False), (lambda a, /: None, "a", False, False), (lambda **kwargs: None, "a", False, True),
        (functools.partial(Base, a=1), "a", False, False), (functools.partial(Base, a=1), "render_mode", True, True),
    ],
)  # fmt: skip
def test_asks_for_follows_keyword_arguments_through_the_parents_of_a_class(function, parameter, asks, may_take):
    assert asks_for(function, parameter) is asks
    assert accepts(function, parameter) is may_take


def test_a_function_that_returns_one_environment_again_and_again_is_a_fault(own_file):
    own_file("my_file.py", "ONE = MyEnv()\ndef same():\n    return ONE\n")
    with pytest.raises(EnvError, match=r"^my_file:same returned the same environment twice; every call must") as caught:
        make_group("my_file:same", 2, [0, 1])
    assert caught.value.exit_code == 6


def test_gymnasium_imports_a_file_by_its_path(own_file):
    own_file("my_file.py", "gymnasium.register('Mine-v0', entry_point=MyEnv)\n")
    assert make_spec("gymnasium/my_file.py:Mine-v0").obs["obs"].shape == (3,)
    assert make_spec("gymnasium/my_file:Mine-v0").name == "gymnasium/my_file:Mine-v0"


def test_env_protocol_is_refused_by_an_environment_without_protocols(own_file):
    own_file("my_file.py")
    with pytest.raises(EnvError, match=r"^my_file:MyEnv: env\.protocol dqn: it has no protocols to choose from$"):
        make_group("my_file:MyEnv", 1, [0], EnvOptions(protocol="dqn"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_file:MyEnv", True), ("my_file.py:MyEnv", True), ("package.module:factory", True),
        ("sub/my_file.py:MyEnv", True), ("../my_file.py:MyEnv", True), ("gymnasium/my_file:Mine-v0", False),
        ("gymnasium/my_file.py:Mine-v0", False), ("minatar/breakout", False), ("breakout", False),
    ],
)  # fmt: skip
def test_settings_and_environments_agree_on_what_names_code(name, expected):
    assert (presets.is_python_target(name), python_target.is_python_target(name)) == (expected, expected)


def test_threads_wait_for_a_file_that_another_one_is_importing(tmp_path):
    (tmp_path / "slow_file.py").write_text("import time\ntime.sleep(0.3)\nready = True\n")

    def is_ready(_):
        return python_target._import_file(tmp_path / "slow_file.py").ready  # read at once, in the same thread

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(is_ready, 0)
        while "slow_file" not in sys.modules:
            time.sleep(0.001)
        second = pool.submit(is_ready, 1)  # the first one is within the file
        assert (first.result(), second.result()) == (True, True)
    del sys.modules["slow_file"]


def test_a_file_named_like_an_installed_module_does_not_take_its_place(tmp_path):
    (tmp_path / "wave.py").write_text("mine = True\n")  # a module of the standard library that nothing has imported
    assert "wave" not in sys.modules
    assert python_target._import_file(tmp_path / "wave.py").mine
    assert "wave" not in sys.modules
