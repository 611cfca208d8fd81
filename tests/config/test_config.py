"""Settings: sources and their precedence, conversion of values, and error messages."""

import itertools
import os
import re
import subprocess
import sys
import threading
import tomllib
import typing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sfactory
from sfactory.config import Config, Env, Model, Run, Stop, to_dict, with_settings
from sfactory.config.bounds import ENCODER_NAMES
from sfactory.config.cross_checks import WITHOUT_ADVANTAGES, has_effect
from sfactory.config.flags import field_help, split_flags
from sfactory.config.parsing import build, convert, field_types, number
from sfactory.config.presets import (
    default_file,
    fallback_note,
    family_defaults,
    presets,
    presets_dir,
    read_toml,
    several_agents_note,
    target_layers,
    target_of_agents,
)
from sfactory.config.toml_file import from_toml, to_toml
from sfactory.errors import SettingError


def config(target, *flags, files=()):
    layer, _, positionals = split_flags(flags, {})
    assert not positionals
    return build(*target_layers(target, files), layer)


# -- TOML


def test_to_toml_and_from_toml_are_inverse(tmp_path):
    settings = {"sticky": 0.1, "on": True, "a b": [1, 2], "nested": {"x": 'quo"te\\ \n\x7f'}}
    before = Config(
        env=Env(name="minatar/breakout", settings=settings),
        stop=Stop(env_steps=123, target_return=-1.5e-7),
        model=Model(hidden=(64, 32)),
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(before))
    assert from_toml(path) == before
    assert build(read_toml(path)) == before  # both readers agree


def test_to_toml_leaves_none_out(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(Config(stop=Stop(target_return=None))))
    assert "target_return" not in path.read_text()
    assert from_toml(path).stop.target_return is None


@pytest.mark.parametrize("text", ["[optim]\nlrr = 1\n", "[optimm]\nlr = 1\n", "lr = 1\n", "[optim\n"])
def test_from_toml_names_the_damaged_file(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.toml: "):
        from_toml(path)


# -- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [("10M", 10_000_000), ("2.3M", 2_300_000), ("50k", 50_000), ("1e3", 1000), ("1_000", 1000), ("1G", 10**9)],
)
def test_whole_numbers_accept_units_exactly(text, value):
    steps = config("minatar/breakout", "--stop.env-steps", text).stop.env_steps
    assert steps == value
    assert type(steps) is int


def test_floats_accept_exponents_and_units():
    assert config("minatar/breakout", "--optim.lr", "2.5e-4").optim.lr == 2.5e-4
    assert config("minatar/breakout", "--stop.target-return", "-1.5e2").stop.target_return == -150.0
    assert config("minatar/breakout", "--stop.seconds", "1.5k").stop.seconds == 1500.0


@pytest.mark.parametrize("text", ["10X", "", "nan", "inf", "1.2.3", "10 M M", "0x10", "--", "10m"])
def test_number_rejects_other_text(text):
    with pytest.raises(SettingError, match="is not a number"):
        number(text)


# -- precedence


def test_build_prefers_flags_to_files_and_files_to_presets(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("[optim]\nlr = 0.5\neps = 0.25\n[surrogate]\nclip = 0.75\n")
    second.write_text("[optim]\neps = 0.125\n")
    plain = config("minatar/breakout")
    got = config("minatar/breakout", "--optim.lr", "0.1", files=(first, second))
    assert got.optim == replace(plain.optim, lr=0.1, eps=0.125)
    assert got.surrogate == replace(plain.surrogate, clip=0.75)
    assert got.sampling == plain.sampling  # unchanged where no source names it


def test_a_file_may_write_numbers_with_units_as_text(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[stop]\nenv_steps = "3M"\n[optim]\nlr = 1\n[log]\nevery-seconds = 2\n')
    got = config("minatar/breakout", files=[path])
    assert (got.stop.env_steps, got.optim.lr, got.log.every_seconds) == (3_000_000, 1.0, 2.0)


def test_target_layers_use_the_family_default_without_a_preset():
    got = config("gymnasium/MountainCar-v0")
    assert got.env.name == "gymnasium/MountainCar-v0"
    assert got.normalize.obs  # from configs/gymnasium/default.toml, not the dataclass
    assert not Config().normalize.obs
    assert config("minatar/freeway-v1").model.encoder == "minatar"


def test_a_file_has_precedence_over_the_family_default(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text("[optim]\nlr = 0.5\n")
    assert config("gymnasium/MountainCar-v0", files=[path]).optim.lr == 0.5


def test_the_target_has_precedence_over_env_name_in_a_file(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[env]\nname = "gymnasium/Acrobot-v1"\n')
    assert config("gymnasium/CartPole-v1", files=[path]).env.name == "gymnasium/CartPole-v1"
    assert config("", files=[path]).env.name == "gymnasium/Acrobot-v1"


CODE = ("my_file:MyEnv", "my_file.py:MyEnv", "pkg.mod:factory", "sub/my_file.py:MyEnv", "/abs/my.py:E", "../my.py:E")


@pytest.mark.parametrize("target", ["faults/count", *CODE, "my_file:A,my_file:B", "my_file:A, sub/b.py:B"])
def test_targets_without_presets_have_the_settings_of_gymnasium(target):
    assert not (presets_dir() / "faults").exists()
    got, plain = config(target), config("gymnasium/CartPole-v1")
    assert got.env.name == target.replace(", ", ",")
    assert replace(got, env=plain.env) == plain
    assert plain.normalize.obs != Config().normalize.obs


@pytest.mark.parametrize("name", ["my_file:MyEnv", "faults/count", "memory/tmaze", "minatar/any"])
def test_an_environment_named_in_a_file_alone_has_the_same_settings(tmp_path, name):
    path = tmp_path / "my.toml"
    path.write_text(f'[env]\nname = "{name}"\n[optim]\nlr = 0.5\n')
    assert config("", files=[path]) == config(name, "--optim.lr", "0.5")


def test_families_with_settings_of_their_own_keep_them():
    for preset in family_defaults():
        family = preset.name.removesuffix("/*")
        assert default_file(f"{family}/anything").parent.name == family
        assert default_file(f"{family}/anything,other/thing").parent.name == family
        assert fallback_note(f"{family}/anything") == ""
    assert config("memory/tmaze").model.core == "gru"


@pytest.mark.parametrize("target", ["faults/count", "my_file:MyEnv", "sub/my_file.py:MyEnv", "my_file:A,my_file:B"])
def test_fallback_note_names_the_origin_of_the_settings(target):
    first = target.partition(",")[0]
    assert fallback_note(target) == (
        f"settings: those of gymnasium/*, because there is no preset for {first}; "
        f"sfactory train {target} --print-config lists them"
    )
    assert fallback_note("") == fallback_note("mujoco/ant") == fallback_note("classic/cartpole") == ""


def test_several_agents_note_names_the_settings_for_one_agent_and_the_target_with_those_for_several():
    note = several_agents_note(config("my_file:MyEnv", "--optim.lr", "1e-3"))
    assert note == (
        "my_file:MyEnv has several agents, and these settings are made for one (in parentheses: for several): "
        "sampling.envs-per-group 16 (8), trace.gamma 0.99 (0.95), model.hidden 64,64 (128,128); "
        "for several: sfactory train pettingzoo/my_file:MyEnv"
    )
    assert "sfactory train pettingzoo/my_file:A,pettingzoo/my_file:B" in several_agents_note(
        config("my_file:A,my_file:B")
    )
    assert target_of_agents("my_file:A, mpe/simple_spread") == "pettingzoo/my_file:A,mpe/simple_spread"
    own = presets_dir() / "pettingzoo" / "default.toml"
    for other in (config("pettingzoo/my_file:MyEnv"), config("envpool/Go-v1"), config("my_file:MyEnv", files=[own])):
        assert several_agents_note(other) == ""


def test_the_settings_of_pictures_replace_those_of_gymnasium_as_a_file():
    for family in ("minatar", "atari"):
        file = presets_dir() / family / "default.toml"
        own, other = config(f"{family}/any"), config("gymnasium/CartPole-v1", files=[file])
        assert replace(other, env=own.env) == own


def test_environment_settings_of_all_sources_are_merged(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[env.settings]\nsticky-action-prob = 0.5\nother = "x"\n')
    got = config("minatar/breakout", "--env.settings.sticky-action-prob", "0", "--env.settings.on=true", files=[path])
    assert got.env.settings == {"sticky_action_prob": 0, "other": "x", "on": True}


def test_environment_settings_from_flags_are_toml_values_or_text():
    given = {"i": "10M", "f": "2.5", "b": "false", "l": "[1, 2]", "s": "hello", "q": '"7"', "d": "-0.5"}
    flags = [f"--env.settings.{key}={value}" for key, value in given.items()]
    expected = {"i": 10_000_000, "f": 2.5, "b": False, "l": [1, 2], "s": "hello", "q": "7", "d": -0.5}
    assert config("minatar/breakout", *flags).env.settings == expected


def test_switches_accept_the_usual_words_and_forms():
    on = [["--normalize.obs"], ["--normalize.obs", "true"], ["--normalize.obs=yes"], ["--normalize.obs", "True"]]
    off = [["--normalize.no-obs"], ["--normalize.obs", "false"], ["--normalize.obs=0"], ["--normalize.obs", "False"]]
    assert [config("classic/cartpole", *flags).normalize.obs for flags in on] == [True] * 4
    assert [config("classic/pendulum", *flags).normalize.obs for flags in off] == [False] * 4


def test_split_flags_reads_lists_with_blanks_or_commas_and_keeps_the_target():
    layer, _, positionals = split_flags(["--model.hidden", "32", "16", "minatar/breakout"], {})
    assert positionals == ["minatar/breakout"]
    assert build(layer).model.hidden == (32, 16)
    assert config("minatar/breakout", "--model.hidden=32,16").model.hidden == (32, 16)


def test_underscores_and_dashes_in_flags_are_equal():
    assert config("minatar/breakout", "--optim.max_grad_norm", "2") == config(
        "minatar/breakout", "--optim.max-grad-norm=2"
    )


# -- error messages


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim.lrr", "1"], "optim.lrr: no such setting; did you mean optim.lr?"),
        (["--optim.lr"], "optim.lr: a value is missing"),
        (["--optim.lr", "abc"], "optim.lr: 'abc' is not a number; write for example 2.5e-4, 2000, 50k or 10M"),
        (["--stop.env-steps", "1.5"], "stop.env-steps: 1.5 is not a whole number"),
        (["--trace.estimator", "gea"],
         "trace.estimator: 'gea' is not one of gae, vtrace, leaky_vtrace, retrace, truncated_is, "
         "recursive_retrace, rbis; did you mean gae?"),
        (["--normalize.obs=maybe"], "normalize.obs: 'maybe' is neither true nor false"),
        (["--model.hidden", "64.5"], "model.hidden: 64.5 is not a whole number"),
        (["--trace.gamma", "2"], "trace.gamma is 2.0; it must be between 0 and 1"),
        (["--sampling.num-samplers", "-1"], "sampling.num-samplers is -1; it must be between 0 and 4096"),
        (["--run.inference-workers", "3", "--sampling.num-samplers", "2"],
         "run.inference-workers 3 cannot share 2 samplers; each needs one or more: use at most 2, or raise "
         "sampling.num-samplers"),
        (["--batch.minibatches", "5"],
         "32 lanes (2 slots x 16 envs) must divide into 5 minibatches; try batch.minibatches 4 or 8"),
        (["--optim.schedule", "linear", "--stop.env-steps", "0"],
         "optim.schedule linear ends at stop.env-steps, which is 0; set it, or use constant"),
        (["--model.encoder", "resnet"],
         "model.encoder is resnet; it must be auto, mlp, minatar, nature, impala, cnn or module:Class"),
    ],
)  # fmt: skip
def test_build_reports_a_mistake_in_one_line(flags, message):
    with pytest.raises(SettingError) as caught:
        config("minatar/breakout", *flags)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("breakout", "breakout: no such preset; write minatar/breakout (tuned), or"),
        ("brekout", "did you mean minatar/breakout?"),
        ("classic/cartpol", "did you mean classic/cartpole?"),
        ("minatr/breakout", "no environment family minatr; did you mean minatar?"),
        ("my.toml", "a file is given as --config my.toml"),
        ("minatar/../secret", "no such preset"),
        ("my_file.py", "my_file.py: name the class or function in it too, as my_file.py:MyEnv"),
        ("sub/my_file:MyEnv", "no environment family sub; a file in a folder is written sub/my_file.py:MyEnv"),
        ("my_file:A,cartpole", "cartpole is not FAMILY/ID"),
        ("", "no TARGET"),
    ],
)
def test_target_layers_suggest_a_target(target, message):
    with pytest.raises(SettingError) as caught:
        target_layers(target)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_target_that_is_a_file_without_its_ending_needs_a_name_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catch.py").write_text("")
    with pytest.raises(SettingError, match=r"^catch: name the class or function in catch\.py too, as catch:MyEnv$"):
        target_layers("catch")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlrr = 1", "my.toml: optim.lrr: no such setting; did you mean optim.lr?"),
        ('[optim]\nlr = "x"', "my.toml: optim.lr: 'x' is not a number"),
        ("[optim]\nlr = [1, 2]", "my.toml: optim.lr: expected one value, got a list of 2"),
        ("[optim]\nlr = {a = 1}", "my.toml: optim.lr: expected one value, got a table"),
        ("optim = 3", "my.toml: optim: settings belong in sections"),
        ("[optim\nlr = 1", "my.toml: not valid TOML"),
        ("[trace]\ngamma = 2", "my.toml: trace.gamma is 2.0; it must be between 0 and 1"),
    ],
)
def test_build_names_the_file_of_a_mistake(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(SettingError) as caught:
        config("minatar/breakout", files=[tmp_path / "my.toml"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_overrides_an_invalid_value_of_a_file(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[optim]\nlr = "x"\n')
    assert config("minatar/breakout", "--optim.lr", "1", files=[path]).optim.lr == 1.0


def test_cross_checks_allow_exactly_what_the_weight_rule_allows():
    from sfactory.algo.surrogates.options import reads_proximal
    from sfactory.algo.weight_rule import weight_conflict

    types = field_types()
    names = ("trace.estimator", "proximal.policy", "surrogate.objective", "surrogate.behavior_weight")
    refused = 0
    for combination in itertools.product(*(typing.get_args(types[name]) for name in names)):
        conflict = weight_conflict(*combination)
        settings = dict(zip(names, combination, strict=True))
        _, proximal, objective, weight = combination
        unread = proximal != "recompute" and not reads_proximal(objective, "none", weight)
        if conflict is None and not unread:
            with_settings(Config(), settings)
            continue
        refused += 1
        reason = f"proximal.policy {proximal} has no effect with" if unread else re.escape(conflict.reason)
        with pytest.raises(ValueError, match=reason) as caught:
            with_settings(Config(), settings)
        assert "\n" not in str(caught.value)
    assert refused > 50


@pytest.mark.parametrize("fixed", [(), ("trace",)])
def test_every_remedy_of_the_weight_rule_is_accepted(fixed):
    from sfactory.algo.weight_rule import weight_conflict

    types = field_types()
    names = ("trace.estimator", "proximal.policy", "surrogate.objective", "surrogate.behavior_weight")
    arguments = ("trace", "proximal", "surrogate", "behavior_weight")
    solved = 0
    for combination in itertools.product(*(typing.get_args(types[name]) for name in names)):
        given = dict(zip(arguments, combination, strict=True))
        conflict = weight_conflict(**given, fixed=fixed)
        if conflict is not None:
            assert conflict.remedies
            for remedy in conflict.remedies:
                assert weight_conflict(**{**given, **remedy}) is None, (given, remedy)
                assert not remedy.keys() & set(fixed)
            solved += 1
    assert solved > 50


def test_the_weight_rule_names_flags_and_what_to_use():
    with pytest.raises(SettingError) as caught:
        config("minatar/breakout", "--surrogate.behavior-weight", "trace")
    assert str(caught.value) == (
        "surrogate.behavior-weight trace with trace.estimator gae, proximal.policy recompute, surrogate.objective "
        "decoupled: gae has no weight; use trace.estimator vtrace, or surrogate.behavior-weight surrogate"
    )


CONSTANT = ("--optim.schedule", "constant", "--loss.entropy-final", "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--surrogate.kl-coef", "0.5"],
            "surrogate.kl-coef 0.5 has no effect with surrogate.objective decoupled; leave it at 1, or use "
            "surrogate.objective decoupled_kl or mdpo",
        ),
        (
            ["--surrogate.objective", "cispo", "--surrogate.dual-clip", "3"],
            "surrogate.dual-clip 3 has no effect with surrogate.objective cispo; leave it at 0, or use "
            "surrogate.objective ppo or decoupled or bapo",
        ),
        (
            ["--surrogate.mask", "erc", "--surrogate.second-moment", "0.1"],
            "surrogate.second-moment 0.1 has no effect with surrogate.objective decoupled and mask erc; leave it at "
            "0.04, or use surrogate.mask m2po",
        ),
        (
            ["--surrogate.median-head", "false"],
            "surrogate.median-head false has no effect with surrogate.objective decoupled; leave it at true, or use "
            "surrogate.objective bpo",
        ),
        (
            ["--surrogate.mask", "erc", "--proximal.policy", "interpolate"],
            "surrogate.mask erc compares entropies, and proximal.policy interpolate has none; use recompute, ewma or "
            "behavior",
        ),
        (
            ["--surrogate.mask", "erc", "--proximal.policy", "snapshot", "--proximal.snapshot-age", "0"],
            "surrogate.mask erc compares entropies, and proximal.policy snapshot with snapshot-age 0 has none; use "
            "recompute, ewma or behavior",
        ),
        (
            ["--surrogate.objective", "dispo", "--surrogate.weight-low", "12"],
            "surrogate.weight-low 12 is above surrogate.weight-high 11; lower the first or raise the second",
        ),
        (
            ["--surrogate.objective", "bapo", "--surrogate.bound-low-max", "1.3"],
            "surrogate.bound-low-max 1.3 is above surrogate.bound-high 1.2; lower the first or raise the second",
        ),
        (
            ["--surrogate.objective", "mdpo", "--stop.env-steps", "0", "--stop.seconds", "9", *CONSTANT],
            "surrogate.kl-anneal ends at stop.env-steps, which is 0; set it, or use surrogate.kl-anneal false",
        ),
        (
            ["--surrogate.objective", "minpro", "--surrogate.behavior-weight", "none"],
            "surrogate.behavior-weight none with trace.estimator gae, proximal.policy recompute, surrogate.objective "
            "minpro: minpro corrects by policy / behavior itself; use surrogate.behavior-weight surrogate",
        ),
    ],
)
def test_settings_of_the_surrogate_without_effect_or_meaning_are_refused(words, message):
    with pytest.raises(SettingError) as caught:
        config("minatar/breakout", *words)
    assert str(caught.value) == message
    assert config("minatar/breakout", "--surrogate.objective", "mdpo", "--surrogate.kl-coef", "0.5")


def test_choices_of_the_schema_are_the_names_of_the_registries():
    from sfactory.algo.proximal import PROXIMALS
    from sfactory.algo.schedule import SCHEDULES
    from sfactory.algo.surrogates.options import MASK_USES
    from sfactory.algo.surrogates.registry import SURROGATES
    from sfactory.algo.trace import TRACES
    from sfactory.model import encoders
    from sfactory.model.cores import CORES

    for name, registry in {
        "proximal.policy": PROXIMALS, "surrogate.objective": SURROGATES, "trace.estimator": TRACES,
        "optim.schedule": SCHEDULES, "model.core": CORES, "surrogate.mask": MASK_USES,
    }.items():  # fmt: skip
        assert set(typing.get_args(field_types()[name])) == set(registry), name
    assert set(ENCODER_NAMES) == {"auto", *encoders.ENCODERS}


def test_every_setting_has_a_help_text():
    assert set(field_help()) == set(field_types())
    assert all(text.endswith(".") for text in field_help().values())


# -- values from Python, and what building leaves alone


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("batch.epochs", 3, 3),
        ("batch.epochs", 3.0, 3),
        ("batch.epochs", np.int64(3), 3),
        ("optim.lr", 1, 1.0),
        ("optim.lr", np.float32(0.5), 0.5),
        ("optim.lr", "2.5e-4", 2.5e-4),
        ("normalize.obs", True, True),
        ("normalize.obs", "on", True),
        ("normalize.obs", 0, False),
        ("model.hidden", (64, 32), (64, 32)),
        ("model.hidden", [64, "1k"], (64, 1000)),
        ("model.hidden", "64,32", (64, 32)),
        ("model.hidden", 64, (64,)),
        ("stop.target_return", "none", None),
        ("stop.target_return", 5, 5.0),
        ("run.dir", Path("runs/a"), "runs/a"),
        ("run.dir", "10M", "10M"),
        ("model.core", "gru", "gru"),
    ],
)
def test_convert_gives_the_type_of_the_field(name, given, value):
    got = convert(name, given)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("batch.epochs", "x", "batch.epochs: 'x' is not a whole number; write for example 2000, 50k or 10M"),
        ("batch.epochs", 1.5, "batch.epochs: 1.5 is not a whole number"),
        ("batch.epochs", True, "batch.epochs: True is not a whole number"),
        ("batch.epochs", None, "batch.epochs: None is not a whole number"),
        ("batch.epochs", object, "batch.epochs: <class 'object'> is not a whole number"),
        ("optim.lr", float("nan"), "optim.lr: 'nan' is not a number; write for example 2.5e-4, 2000, 50k or 10M"),
        ("optim.lr", [1, 2], "optim.lr: expected one value, got a list of 2"),
        ("optim.lr", {"a": 1}, "optim.lr: expected one value, got a table"),
        ("stop.target_return", True, "stop.target-return: True is not a number"),
        ("normalize.obs", 2, "normalize.obs: 2 is neither true nor false"),
        ("model.core", 3, "model.core: 3 is not one of none, gru, lstm"),
        ("model.hidden", [1.5], "model.hidden: 1.5 is not a whole number"),
        ("model.hidden", [[1]], "model.hidden: expected one value, got a list of 1"),
        ("model.hidden", "wide", "model.hidden: 'wide' is not a whole number; write for example 2000, 50k or 10M"),
        ("env.settings", "fast", "env.settings: 'fast' is not a table; write --env.settings.KEY value"),
        ("env.settings", 3, "env.settings: 3 is not a table"),
    ],
)
def test_convert_names_the_setting_the_value_and_what_was_expected(name, given, message):
    with pytest.raises(SettingError) as caught:
        convert(name, given)
    assert str(caught.value) == message


def test_make_config_works_in_two_threads_and_leaves_the_streams_alone(monkeypatch):
    class Untouched:
        def __getattr__(self, name):
            raise AssertionError(f"a stream was used: {name}")

    monkeypatch.setattr(sys, "stdout", stdout := Untouched())
    monkeypatch.setattr(sys, "stderr", stderr := Untouched())
    monkeypatch.setenv("COLUMNS", "40")
    start, results, failures = threading.Barrier(4), {}, []

    def work(number):
        try:
            start.wait()
            for i in range(50):
                lr = (number + 1) / (i + 1)
                results[number, i] = sfactory.make_config("minatar/breakout", optim={"lr": lr}).optim.lr == lr
                with pytest.raises(ValueError, match=f"^optim.lr: 'bad{number}' is not a number"):
                    sfactory.make_config("minatar/breakout", optim={"lr": f"bad{number}"})
                assert sys.stdout is stdout
                assert sys.stderr is stderr
                assert os.environ["COLUMNS"] == "40"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert failures == []
    assert len(results) == 200
    assert all(results.values())


def test_importing_the_schema_loads_only_the_standard_library():
    code = "import sys, sfactory.config.schema; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stdout.split()
    assert not {"msgspec", "pydantic", "tomli_w", "numpy", "torch"} & set(loaded)


# -- presets


def test_every_preset_builds_and_has_a_description_and_a_source():
    found = {preset.name: preset for preset in presets()}
    games = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
    assert {f"minatar/{g}" for g in games} | {f"classic/{c}" for c in ("cartpole", "pendulum", "acrobot")} <= set(found)
    for name, preset in found.items():
        got = config(name)
        assert got.env.name == preset.env != ""
        assert len(preset.description) > 10
        assert "Source:" in preset.path.read_text()
        assert tomllib.loads(to_toml(got))["env"]["name"] == preset.env


def test_the_minatar_presets_differ_only_in_the_game_the_trace_and_the_scale_of_returns():
    """Freeway, where rewards are rare, keeps a long trace."""

    def rest(name):
        found = with_settings(config(name), {"trace.trace_lambda": 0.8}) if name == "minatar/freeway" else config(name)
        return {**to_dict(found), "env": None, "normalize": None}

    games = {preset.name for preset in presets() if preset.name.startswith("minatar/")}
    assert all(rest(name) == rest("minatar/breakout") for name in games)
    assert config("minatar/freeway").trace.trace_lambda == 0.95
    assert config("minatar/breakout").loss.entropy_final == 0
    assert config("minatar/breakout").optim.schedule == "linear"
    scaled = {name for name in games if config(name).normalize.value_targets}
    assert scaled == {"minatar/freeway", "minatar/space_invaders"}
    assert not any(config(name).normalize.obs or config(name).normalize.reward for name in games)
    assert config("minatar/breakout").batch_rows == 2048


def test_an_unknown_inference_device_is_an_error():
    for good in ("", "cpu", "cuda:1"):
        Config(run=Run(inference_device=good))
    with pytest.raises(ValueError, match=r"run\.inference-device is gpu"):
        Config(run=Run(inference_device="gpu"))


def test_run_folders_of_a_configuration_begin_at_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "my.toml"
    path.write_text('[run]\ndir = "~/runs/x"\ninit_from = "~/runs/y"\n')
    given = {"dir": "~/runs/x", "init_from": Path("~/runs/y")}
    results = [
        config("minatar/breakout", "--run.dir=~/runs/x", "--run.init-from", "~/runs/y").run,
        config("minatar/breakout", files=[path]).run,
        sfactory.make_config("minatar/breakout", run=given).run,
    ]
    assert [(run.dir, run.init_from) for run in results] == [("/home/me/runs/x", "/home/me/runs/y")] * 3
    assert config("minatar/breakout", "--run.dir=runs/~x").run.dir == "runs/~x"
    assert config("~/a.py:A,~/b.py:B").env.name == "/home/me/a.py:A,/home/me/b.py:B"


def test_values_of_a_preset_without_effect_beside_what_is_given_are_left_out(tmp_path):
    assert config("memory/tmaze", "--model.core", "none").model.core_size == Config().model.core_size
    assert config("classic/cartpole").model.hidden == (64, 64)
    own = config("classic/cartpole", "--model.network", "my_net:Mine", "--model.separate", "false").model
    assert own == Model(network="my_net:Mine")
    for flag in ("--model.hidden", "--model.core-size"):
        with pytest.raises(SettingError, match=f"{flag[2:]} 32 has no effect with"):
            config("classic/cartpole", "--model.network", "my_net:Mine", flag, "32")
    file = tmp_path / "own.toml"
    file.write_text("[model]\ncore_size = 32\n")
    with pytest.raises(
        SettingError, match=r"model.core-size 32 has no effect without model.core gru or lstm; set that"
    ):
        build(*target_layers("classic/cartpole", [file]))


def test_values_of_a_preset_that_contradict_what_is_given_are_refused():
    """They have an effect: without one line, another value would be trained than the one that is shown."""
    with pytest.raises(SettingError, match=r"optim.lr .* is outside optim.lr-min"):
        config("minatar/breakout", "--optim.schedule", "kl_adaptive", "--optim.lr-max", "1e-5")


def test_no_preset_has_a_value_without_effect():
    for preset in presets():
        layers = target_layers(preset.name)
        typed = [{name: replace(raw, preset=False) for name, raw in layer.items()} for layer in layers]
        assert build(*typed) == build(*layers), preset.name


@pytest.mark.parametrize("objective", WITHOUT_ADVANTAGES)
def test_a_baseline_is_refused_for_objectives_without_advantages(objective):
    plain = with_settings(Config(env=Env("classic/cartpole")), {"surrogate.objective": objective})
    with pytest.raises(ValueError, match=r"trace\.baseline optimal has no effect without a surrogate\.objective other"):
        with_settings(plain, {"trace.baseline": "optimal"})
    assert not has_effect(plain, "trace.baseline")
    assert has_effect(with_settings(plain, {"surrogate.objective": "cispo"}), "trace.baseline")
