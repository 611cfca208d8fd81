"""Settings of an environment are values: from Python, TOML and the command line, through config.toml and back."""

import collections
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import tomllib
import types

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sfactory
from sfactory.config import Config, Env, to_dict
from sfactory.config.flags import split_flags
from sfactory.config.parsing import build
from sfactory.config.presets import read_toml, target_layers
from sfactory.config.toml_file import from_toml, to_toml
from sfactory.config.values import as_text, from_text, plain, plain_table, same
from sfactory.errors import SettingError

TARGET = "gymnasium/CartPole-v1"
TEXT = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def settings(*flags, files=(), target=TARGET):
    layer, _, positionals = split_flags(flags, {})
    assert not positionals
    return build(*target_layers(target, files), layer).env


def python(**given):
    return sfactory.make_config(TARGET, env={"settings": given}).env.settings


def written(tmp_path, text):
    path = tmp_path / "my.toml"
    path.write_text(text)
    return path


# -- Python


class Level(enum.IntEnum):
    HARD = 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.int64(8), 8), (np.uint8(8), 8), (np.float32(0.5), 0.5), (np.float64(0.1), 0.1), (np.longdouble(0.5), 0.5),
        (np.bool_(False), False), (np.str_("a"), "a"), (np.ones(2), [1.0, 1.0]), (np.array(5), 5),
        (np.array([[1, 2]], np.int8), [[1, 2]]), (np.array([True]), [True]), (np.array([1, None], object), [1, None]),
        (torch.tensor([1, 2]), [1, 2]), (torch.tensor(0.5), 0.5), ((1, (2, 3)), [1, [2, 3]]),
        ({"a": np.int64(3), "b": (np.bool_(True),)}, {"a": 3, "b": [True]}),
        (types.MappingProxyType({"a": 1}), {"a": 1}), (collections.OrderedDict(b=1, a=None), {"b": 1, "a": None}),
        (pathlib.Path("maps/a"), "maps/a"), (Level.HARD, 3), (None, None), (10**20, 10**20), (-math.inf, -math.inf),
        (math.nan, math.nan), (-0.0, -0.0), ("8", "8"), ("none", "none"), ("", ""), ({}, {}), ([], []),
    ],
)  # fmt: skip
def test_python_values_arrive_as_plain_values(value, expected):
    got = python(x=value)["x"]
    assert same(got, expected), got
    assert math.copysign(1, got) == math.copysign(1, expected) if isinstance(expected, float) else True


class Thing:
    pass


CYCLE: list = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (max, "env.settings.x: a function cannot be stored; name it as text"),
        (lambda: 0, "env.settings.x: a function cannot be stored"),
        (Thing, "env.settings.x: a class cannot be stored"),
        (Thing(), "env.settings.x: an object of the class Thing cannot be stored; values are numbers, text"),
        ({1}, "env.settings.x: a set cannot be stored; write a list"),
        (frozenset({1}), "env.settings.x: a set cannot be stored"),
        ({1: "a"}, "env.settings.x: a table with the key 1 cannot be stored; keys must be text"),
        (b"ab", "env.settings.x: bytes cannot be stored"),
        (1j, "env.settings.x: a complex number cannot be stored"),
        (np.complex64(1), "env.settings.x: a complex number cannot be stored"),
        (np.array([1j]), "env.settings.x[0]: a complex number cannot be stored"),
        (datetime.date(2020, 1, 1), "env.settings.x: a date or time cannot be stored; write it as text, in quotes"),
        (datetime.timedelta(1), "env.settings.x: a date or time cannot be stored"),
        (np.datetime64("2020-01-01"), "env.settings.x: a date or time cannot be stored"),
        (decimal.Decimal("0.1"), "env.settings.x: a Decimal cannot be stored; write it as a float or as text"),
        (fractions.Fraction(1, 3), "env.settings.x: a Fraction cannot be stored"),
        (range(3), "env.settings.x: an object of the class range cannot be stored"),
        ({"a": [1, {"b": max}]}, "env.settings.x.a[1].b: a function cannot be stored"),
        (CYCLE, "lists and tables contain each other to a depth of more than 64"),
        ("\ud800", "env.settings.x: '\\ud800' cannot be stored; it is not valid Unicode"),
        ({"\ud800": 1}, "it is not valid Unicode"),
        pytest.param(10**5000, "env.settings.x: a number with so many digits cannot be stored", id="digits"),
        (np.zeros(2, [("a", int)]), "env.settings.x: an object of the class ndarray cannot be stored"),
    ],
)  # fmt: skip
def test_python_values_that_cannot_be_stored_are_refused_by_name(value, message):
    with pytest.raises(SettingError) as caught:
        python(x=value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_argument_whose_name_is_not_text_is_refused():
    with pytest.raises(SettingError, match=r"env\.settings: a table with the key 1 cannot be stored"):
        sfactory.make_config(TARGET, env={"settings": {1: "a"}})


def test_a_config_built_without_parsing_holds_plain_values_too():
    assert same(Env(settings={"x": (np.int64(3), None)}).settings, {"x": [3, None]})
    with pytest.raises(SettingError, match=r"env\.wrapper-settings\.w: a function cannot be stored"):
        Env(wrapper_settings={"w": max})


def test_a_refused_setting_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="a function cannot be stored"):
        sfactory.train(TARGET, env={"settings": {"x": max}}, run={"dir": "runs/a"})
    assert list(tmp_path.iterdir()) == []


# -- the command line


TYPED = {
    '{"vehicles": 5}': {"vehicles": 5}, "{'vehicles': 5}": {"vehicles": 5}, "{vehicles = 5}": {"vehicles": 5},
    '[{"a": 1}]': [{"a": 1}], "(1,2)": [1, 2], "(1, (2, 'a'))": [1, [2, "a"]], "()": [], "{}": {}, "[]": [],
    "[1, -2.5, true]": [1, -2.5, True], "[True, None]": [True, None], "[true, null]": [True, None],
    '{"a": {"b": [null]}}': {"a": {"b": [None]}}, "{a.b = 1}": {"a": {"b": 1}}, "[0x10, 1_000]": [16, 1000],
    "None": None, "none": None, "null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "yes": True, "on": True, "false": False, "no": False, "off": False,
    "1": 1, "0": 0, "-8": -8, "+5": 5, "1_000": 1000, "0x10": 16, "0b11": 3, "0o17": 15,
    "1.5": 1.5, "-1.5": -1.5, "5.": 5.0, ".5": 0.5, "1e-3": 1e-3, "1e3": 1000.0, "inf": math.inf, "-inf": -math.inf,
    "nan": math.nan, "NaN": math.nan, "0.0": 0.0,
    "3B": 3_000_000_000, "1G": 1_000_000_000, "5k": 5000, "2.5k": 2500, "1.5M": 1_500_000, "0.0001k": 0.1,
    "007": "007", "00": "00", "-01": "-01", "3 # note": "3 # note", "2020-01-01": "2020-01-01", "07:32": "07:32",
    "1,2,3": "1,2,3", "1.2.3": "1.2.3", "1__0": "1__0", "1_": "1_", "hello": "hello", "": "", "a b": "a b",
    "'text'": "text", '"7"': "7", "'true'": "true", '"none"': "none", "'Twas": "'Twas", '"a" # b': '"a" # b',
    "{index}": "{index}", "{index}/map": "{index}/map", "port-{index}": "port-{index}", "10m": "10m", "5K": 5000,
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("text", TYPED)
def test_typed_values_are_read_by_one_rule(text):
    for flags in ((f"--env.settings.x={text}",), ("--env.settings.x", text)):
        got = settings(*flags).settings["x"]
        assert same(got, TYPED[text]), got


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"vehicles": 5', "env.settings.x: '{\"vehicles\": 5' is neither JSON nor TOML nor a Python literal; write"),
        ("{vehicles: 5}", "is neither JSON"), ("[a]", "write text in quotes: '\"[a]\"'"), ("[007]", "is neither JSON"),
        ("(1", "is neither JSON"), ("[1] # note", "is neither JSON"), ("[1]*3", "is neither JSON"),
        ("{1, 2}", "env.settings.x: a set cannot be stored; write a list"),
        ("{1: 2}", "env.settings.x: a table with the key 1 cannot be stored"),
        ("(1, b'a')", "env.settings.x[1]: bytes cannot be stored"), ("(1j,)", "a complex number cannot be stored"),
        ("{a = 2020-01-01}", "env.settings.x.a: a date or time cannot be stored"),
        pytest.param("[" * 100_000, "is neither JSON", id="deep"),
    ],
)  # fmt: skip
def test_typed_text_in_brackets_that_is_no_value_is_refused(text, message):
    with pytest.raises(SettingError) as caught:
        settings(f"--env.settings.x={text}")
    assert message in str(caught.value)[:300]


@hypothesis.settings(deadline=None)  # a machine under load
@given(VALUES)
def test_as_text_is_read_back_by_from_text(value):
    assert same(plain(from_text(as_text(value)), "x"), plain(value, "x"))


def test_dotted_flags_make_nested_tables():
    env = settings(
        "--env.settings.config.vehicles", "5", "--env.settings.config.lanes=[1]", "--env.settings.a-b.c", "x"
    )
    assert env.settings == {"config": {"vehicles": 5, "lanes": [1]}, "a_b": {"c": "x"}}


def test_nested_tables_of_all_sources_are_merged_and_the_later_one_wins(tmp_path):
    path = written(tmp_path, "[env.settings.config]\nvehicles = 1\nlanes = 2\n[env.settings.other]\na = 1\n")
    env = settings(
        '--env.settings.config={"vehicles": 5, "x": {"y": 1}}', "--env.settings.config.x.z", "2", files=[path]
    )
    assert env.settings == {"config": {"vehicles": 5, "lanes": 2, "x": {"y": 1, "z": 2}}, "other": {"a": 1}}
    first = ("--env.settings.config.lanes", "7", '--env.settings.config={"lanes": 8}')
    assert settings(*first, files=[path]).settings["config"] == {"vehicles": 1, "lanes": 8}
    assert settings(*first[2:], *first[:2], files=[path]).settings["config"] == {"vehicles": 1, "lanes": 7}
    assert settings("--env.settings.config", "none", files=[path]).settings["config"] is None
    base = build(*target_layers(TARGET, [path]))
    changed = sfactory.make_config(base, env={"settings": {"config": {"lanes": 9}}})
    assert changed.env.settings == {"config": {"vehicles": 1, "lanes": 9}, "other": {"a": 1}}


@pytest.mark.parametrize("name", ["env.settings.", "env.settings..x", "env.settings.x."])
def test_a_flag_with_an_empty_key_is_refused(name):
    with pytest.raises(SettingError, match=r"a key is missing; write --env\.settings\.KEY value"):
        settings(f"--{name}", "1")


# -- the same from every source


@pytest.mark.parametrize(
    ("flags", "toml", "given"),
    [
        (("--env.settings.x", "8"), "x = 8", {"x": 8}),
        (("--env.settings.x", "off"), "x = false", {"x": False}),
        (("--env.settings.x", "null"), 'x = {python = "None"}', {"x": None}),
        (("--env.settings.x", "[1, null]"), 'x = [1, {python = "None"}]', {"x": (1, None)}),
        (("--env.settings.x.y", "1"), "x = {y = 1}", {"x": {"y": 1}}),
        (("--env.settings.x.y.z", "1"), "[env.settings.x.y]\nz = 1", {"x": {"y": {"z": 1}}}),
        (("--env.settings.x", '[{"a": 1}]'), "[[env.settings.x]]\na = 1", {"x": [{"a": np.int64(1)}]}),
        (("--env.settings.dash-key", "1"), "dash-key = 1", {"dash-key": 1}),
        (("--env.settings.x", '{"dash-key": 1}'), "x = {dash-key = 1}", {"x": {"dash-key": 1}}),
        (("--env.settings.x", "'10M'"), 'x = "10M"', {"x": "10M"}),
        (("--env.settings.x", "inf"), "x = inf", {"x": math.inf}),
        (("--env.settings.x={}",), "x = {}", {"x": {}}),
        (("--env.settings", '{"a.b": 1}'), '"a.b" = 1', {"a.b": 1}),
    ],
)
def test_command_line_toml_and_python_give_the_same_settings(tmp_path, flags, toml, given):
    path = written(tmp_path, f"[env.settings]\n{toml}\n")
    results = [settings(*flags).settings, settings(files=[path]).settings, python(**given)]
    assert same(results[0], results[1])
    assert same(results[1], results[2])


@pytest.mark.parametrize(
    "text", ["x = 2020-01-01", "x = 07:32:00", "x = 2020-01-01T00:00:00Z", "x = [{a = 2020-01-01}]"]
)
def test_dates_in_toml_are_refused_with_the_file(tmp_path, text):
    path = written(tmp_path, f"[env.settings]\n{text}\n")
    with pytest.raises(SettingError, match=r"my\.toml: env\.settings\.x.*: a date or time cannot be stored"):
        settings(files=[path])
    assert settings("--env.settings.x", "1", files=[path]).settings["x"] == 1


def test_an_argument_written_with_a_dash_and_with_an_underscore_is_refused(tmp_path):
    path = written(tmp_path, "[env.settings]\na-b = 1\na_b = 2\n")
    with pytest.raises(SettingError, match=r"my\.toml: env\.settings\.a_b is given twice"):
        settings(files=[path])
    with pytest.raises(SettingError, match=r"env\.settings\.a_b is given twice"):
        sfactory.make_config(TARGET, env={"settings": {"a-b": 1, "a_b": 2}})


@pytest.mark.parametrize("depth", [60, 5000])
def test_toml_of_any_depth_is_read_or_refused_in_one_line(tmp_path, depth):
    path = written(tmp_path, f"[env.settings]\nx = {'[' * depth}{']' * depth}\n")
    if depth == 60:
        assert settings(files=[path]).settings["x"]
    else:
        with pytest.raises(SettingError, match=r"my\.toml: "):
            settings(files=[path])
        with pytest.raises(ValueError, match=r"my\.toml: "):
            from_toml(path)


# -- wrappers


def test_wrapper_settings_come_from_every_source(tmp_path):
    path = written(
        tmp_path,
        '[env.wrapper-settings.FrameStackObservation]\nstack-size = 4\npadding = "zero"\n'
        '[env.wrapper-settings."my.module:wrap"]\nk = {python = "None"}\n',
    )
    flags = ["--env.wrapper-settings.FrameStackObservation.stack-size", "4"]
    flags += ["--env.wrapper-settings.FrameStackObservation.padding", "zero"]
    flags += ["--env.wrapper-settings.my.module:wrap.k", "none"]
    given = {"FrameStackObservation": {"stack_size": 4, "padding": "zero"}, "my.module:wrap": {"k": None}}
    results = [settings(*flags).wrapper_settings, settings(files=[path]).wrapper_settings]
    results.append(sfactory.make_config(TARGET, env={"wrapper_settings": given}).env.wrapper_settings)
    assert results == [given] * 3


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("my_file:wrap.a-b", {"my_file:wrap": {"a_b": 1}}),
        ("my-file.py:wrap.a.c-d", {"my-file.py:wrap": {"a": {"c_d": 1}}}),
        ("sub/my_file.py:wrap.k", {"sub/my_file.py:wrap": {"k": 1}}),
        ("W.k", {"W": {"k": 1}}),
    ],
)
def test_names_of_wrappers_stay_as_they_are_typed(flag, expected):
    assert settings(f"--env.wrapper-settings.{flag}=1").wrapper_settings == expected


@pytest.mark.parametrize("flags", [("--env.wrapper-settings.W", "4"), ("--env.wrapper-settings", '{"W": 4}')])
def test_settings_of_a_wrapper_must_be_a_table(flags):
    with pytest.raises(
        SettingError, match=r"env\.wrapper-settings\.W: 4 is not a table; write --env\.wrapper-settings\.N"
    ):
        settings(*flags)


# -- config.toml and resume


ARGUMENTS = st.dictionaries(TEXT.map(lambda key: key.replace("-", "_")), VALUES, max_size=4)


@hypothesis.settings(deadline=None, max_examples=40)  # a machine under load; each reads and writes a whole file
@given(ARGUMENTS, ARGUMENTS)
def test_settings_survive_config_toml_exactly(tmp_path_factory, of_env, of_wrapper):
    env = {"name": TARGET, "settings": of_env, "wrapper_settings": {"W": of_wrapper}}
    config = sfactory.make_config(TARGET, env=env)
    assert same(config.env.settings, plain_table(of_env, "x"))
    path = tmp_path_factory.mktemp("run") / "config.toml"
    path.write_text(to_toml(config))
    for read in (from_toml(path), build(read_toml(path)), sfactory.make_config(config)):
        assert same(to_dict(read), to_dict(config))


def test_none_in_config_toml_is_a_table_that_a_person_can_write():
    text = to_toml(Config(env=Env(settings={"x": None, "y": [{"z": None}]})))
    settings = tomllib.loads(text)["env"]["settings"]
    assert settings == {"x": {"python": "None"}, "y": [{"z": {"python": "None"}}]}


def test_an_argument_named_python_is_not_taken_for_none():
    assert python(python="None") == {"python": "None"}
    assert settings("--env.settings.python", "'None'").settings == {"python": "None"}
