"""Settings: where they come from, who wins, what is refused and in which words."""

import itertools
import tomllib
import typing
from dataclasses import replace

import pytest

from sfactory.config import Config, Env, Learning, Model, Run, Stop, to_dict
from sfactory.config.bounds import ENCODERS
from sfactory.config.parsing import SettingError, build, field_types, number
from sfactory.config.flags import split_flags
from sfactory.config.presets import presets, presets_dir, read_toml, target_layers
from sfactory.config.toml_file import from_toml, to_toml


def config(target, *flags, files=()):
    layer, _, positionals = split_flags(flags, {})
    assert not positionals
    return build(*target_layers(target, files), layer)


# -- what is read is what was written


def test_toml_reads_back_equal(tmp_path):
    settings = {"sticky": 0.1, "on": True, "a b": [1, 2], "nested": {"x": 'quo"te\\ \n\x7f'}}
    before = Config(
        env=Env(name="minatar/breakout", settings=settings),
        stop=Stop(env_steps=123, target_return=-1.5e-7),
        model=Model(hidden=(64, 32)),
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(before))
    assert from_toml(path) == before
    assert build(read_toml(path)) == before  # the strict reader and the one for people agree


def test_none_is_left_out_and_read_back(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(to_toml(Config(stop=Stop(target_return=None))))
    assert "target_return" not in path.read_text()
    assert from_toml(path).stop.target_return is None


@pytest.mark.parametrize("text", ["[optim]\nlrr = 1\n", "[optimm]\nlr = 1\n", "lr = 1\n", "[optim\n"])
def test_a_damaged_config_names_its_file(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.toml: "):
        from_toml(path)


# -- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [("10M", 10_000_000), ("2.3M", 2_300_000), ("50k", 50_000), ("1e3", 1000), ("1_000", 1000), ("1G", 10**9)],
)
def test_whole_numbers_take_units_exactly(text, value):
    steps = config("minatar/breakout", "--stop.env-steps", text).stop.env_steps
    assert steps == value
    assert type(steps) is int


def test_floats_take_exponents_and_units():
    assert config("minatar/breakout", "--optim.lr", "2.5e-4").optim.lr == 2.5e-4
    assert config("minatar/breakout", "--stop.target-return", "-1.5e2").stop.target_return == -150.0
    assert config("minatar/breakout", "--stop.seconds", "1.5k").stop.seconds == 1500.0


@pytest.mark.parametrize("text", ["10X", "", "nan", "inf", "1.2.3", "10 M M", "0x10", "--", "10m"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(SettingError, match="is not a number"):
        number(text)


# -- who wins


def test_flags_win_over_files_and_files_over_presets(tmp_path):
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("[optim]\nlr = 0.5\neps = 0.25\n[learning]\nclip = 0.75\n")
    second.write_text("[optim]\neps = 0.125\n")
    plain = config("minatar/breakout")
    got = config("minatar/breakout", "--optim.lr", "0.1", files=(first, second))
    assert got.optim == replace(plain.optim, lr=0.1, eps=0.125)
    assert got.learning == replace(plain.learning, clip=0.75)
    assert got.sampling == plain.sampling  # what nobody names stays the preset's


def test_a_file_may_write_numbers_as_people_do(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[stop]\nenv_steps = "3M"\n[optim]\nlr = 1\n[log]\nevery-seconds = 2\n')
    got = config("minatar/breakout", files=[path])
    assert (got.stop.env_steps, got.optim.lr, got.log.every_seconds) == (3_000_000, 1.0, 2.0)


def test_an_environment_without_a_preset_takes_its_familys_default():
    got = config("gymnasium/MountainCar-v0")
    assert got.env.name == "gymnasium/MountainCar-v0"
    assert got.normalize.obs  # says configs/gymnasium/default.toml, not the dataclass
    assert not Config().normalize.obs
    assert config("minatar/freeway-v1").model.encoder == "minatar"


def test_a_file_wins_over_a_familys_default(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text("[optim]\nlr = 0.5\n")
    assert config("gymnasium/MountainCar-v0", files=[path]).optim.lr == 0.5


def test_the_target_names_the_environment_even_if_a_file_names_another(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[env]\nname = "gymnasium/Acrobot-v1"\n')
    assert config("gymnasium/CartPole-v1", files=[path]).env.name == "gymnasium/CartPole-v1"
    assert config("", files=[path]).env.name == "gymnasium/Acrobot-v1"


def test_a_family_without_configs_of_its_own_still_trains():
    assert not (presets_dir() / "faults").exists()
    assert config("faults/count").env.name == "faults/count"


def test_environment_settings_merge_over_all_sources(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[env.settings]\nsticky-action-prob = 0.5\nother = "x"\n')
    got = config("minatar/breakout", "--env.settings.sticky-action-prob", "0", "--env.settings.on=true", files=[path])
    assert got.env.settings == {"sticky_action_prob": 0, "other": "x", "on": True}


def test_environment_settings_are_toml_values_or_text():
    given = {"i": "10M", "f": "2.5", "b": "false", "l": "[1, 2]", "s": "hello", "q": '"7"', "d": "-0.5"}
    flags = [f"--env.settings.{key}={value}" for key, value in given.items()]
    expected = {"i": 10_000_000, "f": 2.5, "b": False, "l": [1, 2], "s": "hello", "q": "7", "d": -0.5}
    assert config("minatar/breakout", *flags).env.settings == expected


def test_switches_can_be_said_in_every_usual_way():
    on = [["--normalize.obs"], ["--normalize.obs", "true"], ["--normalize.obs=yes"], ["--normalize.obs", "True"]]
    off = [["--normalize.no-obs"], ["--normalize.obs", "false"], ["--normalize.obs=0"], ["--normalize.obs", "False"]]
    assert [config("classic/cartpole", *flags).normalize.obs for flags in on] == [True] * 4
    assert [config("classic/pendulum", *flags).normalize.obs for flags in off] == [False] * 4


def test_lists_take_blanks_or_commas_and_leave_the_target_alone():
    layer, _, positionals = split_flags(["--model.hidden", "32", "16", "minatar/breakout"], {})
    assert positionals == ["minatar/breakout"]
    assert build(layer).model.hidden == (32, 16)
    assert config("minatar/breakout", "--model.hidden=32,16").model.hidden == (32, 16)


def test_underscores_and_dashes_are_the_same():
    assert config("minatar/breakout", "--optim.max_grad_norm", "2") == config(
        "minatar/breakout", "--optim.max-grad-norm=2"
    )


# -- what is refused, and in which words


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--optim.lrr", "1"], "optim.lrr: no such setting; did you mean optim.lr?"),
        (["--lr", "1"], "lr: no such setting; did you mean optim.lr?"),
        (["--optim.lr"], "optim.lr: a value is missing"),
        (["--optim.lr", "abc"], "optim.lr: 'abc' is not a number; write for example 2.5e-4, 2000, 50k or 10M"),
        (["--stop.env-steps", "1.5"], "stop.env-steps: 1.5 is not a whole number"),
        (["--learning.trace", "gea"],
         "learning.trace: 'gea' is not one of gae, vtrace, leaky_vtrace, rbis; did you mean gae?"),
        (["--normalize.obs=maybe"], "normalize.obs: 'maybe' is neither true nor false"),
        (["--model.hidden", "64.5"], "model.hidden: 64.5 is not a whole number"),
        (["--learning.gamma", "2"], "learning.gamma is 2.0; it must be between 0 and 1"),
        (["--sampling.num-samplers", "0"], "sampling.num-samplers is 0; it must be at least 1"),
        (["--learning.minibatches", "5"],
         "32 lanes (2 slots x 16 envs) must divide into 5 minibatches; try learning.minibatches 4 or 8"),
        (["--optim.schedule", "linear", "--stop.env-steps", "0"],
         "optim.schedule linear ends at stop.env-steps, which is 0; set it, or use constant"),
        (["--model.encoder", "cnn"],
         "model.encoder is cnn; it must be auto, mlp, minatar, nature, impala or module:Class"),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_in_one_line(flags, answer):
    with pytest.raises(SettingError) as caught:
        config("minatar/breakout", *flags)
    assert str(caught.value) == answer


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("breakout", "did you mean minatar/breakout?"),
        ("classic/cartpol", "did you mean classic/cartpole?"),
        ("minatr/breakout", "no environment family minatr; did you mean minatar?"),
        ("my.toml", "a file is given as --config my.toml"),
        ("minatar/../secret", "no such preset"),
        ("", "no TARGET"),
    ],
)
def test_an_unknown_target_is_answered_with_a_suggestion(target, answer):
    with pytest.raises(SettingError) as caught:
        target_layers(target)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[optim]\nlrr = 1", "my.toml: optim.lrr: no such setting; did you mean optim.lr?"),
        ('[optim]\nlr = "x"', "my.toml: optim.lr: 'x' is not a number"),
        ("[optim]\nlr = [1, 2]", "my.toml: optim.lr: expected one value, got 2"),
        ("[optim]\nlr = {a = 1}", "my.toml: optim.lr: expected one value, got a table"),
        ("optim = 3", "my.toml: optim: settings stand in sections"),
        ("[optim\nlr = 1", "my.toml: not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path, monkeypatch, text, answer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(text)
    with pytest.raises(SettingError) as caught:
        config("minatar/breakout", files=[tmp_path / "my.toml"])
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_heals_a_bad_value_of_a_file(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[optim]\nlr = "x"\n')
    assert config("minatar/breakout", "--optim.lr", "1", files=[path]).optim.lr == 1.0


def test_the_weight_of_behavior_is_judged_as_the_mathematics_judges_it():
    from sfactory.algo.surrogate import check_weights

    hints = typing.get_type_hints(Learning)
    names = [typing.get_args(hints[key]) for key in ("trace", "proximal", "surrogate", "behavior_weight")]
    refused = 0
    for trace, proximal, surrogate, weight in itertools.product(*names):
        try:
            check_weights(trace, proximal, surrogate, weight)
            expected = True
        except ValueError:
            expected = False
        try:
            Config(learning=Learning(trace=trace, proximal=proximal, surrogate=surrogate, behavior_weight=weight))
            allowed = True
        except ValueError:
            allowed = False
        assert allowed == expected, (trace, proximal, surrogate, weight)
        refused += not expected
    assert refused > 50


def test_every_name_in_a_registry_can_be_chosen():
    from sfactory.algo.proximal import PROXIMALS
    from sfactory.algo.schedule import SCHEDULES
    from sfactory.algo.surrogate import SURROGATES
    from sfactory.algo.trace import TRACES
    from sfactory.model import encoders
    from sfactory.model.cores import CORES

    for name, registry in {
        "learning.proximal": PROXIMALS, "learning.surrogate": SURROGATES, "learning.trace": TRACES,
        "optim.schedule": SCHEDULES, "model.core": CORES,
    }.items():  # fmt: skip
        assert set(typing.get_args(field_types()[name])) == set(registry), name
    assert set(ENCODERS) == {"auto", *encoders.ENCODERS}


def test_every_setting_has_a_help_text():
    import ast
    import inspect

    import sfactory.config

    tree = ast.parse(inspect.getsource(sfactory.config))
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "Config"):
        for here, after in itertools.pairwise(cls.body):
            if isinstance(here, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{cls.name}.{here.target.id}"


# -- presets


def test_every_preset_is_a_complete_run_with_a_description_and_a_source():
    found = {preset.name: preset for preset in presets()}
    games = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
    assert {f"minatar/{g}" for g in games} | {f"classic/{c}" for c in ("cartpole", "pendulum", "acrobot")} <= set(found)
    for name, preset in found.items():
        got = config(name)
        assert got.env.name == preset.env != ""
        assert len(preset.description) > 10
        assert "Source:" in preset.path.read_text()
        assert tomllib.loads(to_toml(got))["env"]["name"] == preset.env


def test_the_minatar_presets_differ_in_the_game_and_in_the_scale_of_its_returns():
    def rest(name):
        return {**to_dict(config(name)), "env": None, "normalize": None}

    games = {preset.name for preset in presets() if preset.name.startswith("minatar/")}
    assert all(rest(name) == rest("minatar/breakout") for name in games)
    scaled = {name for name in games if config(name).normalize.value_targets}
    assert scaled == {"minatar/freeway", "minatar/space_invaders"}
    assert not any(config(name).normalize.obs or config(name).normalize.reward for name in games)
    assert config("minatar/breakout").batch_rows == 2048


def test_a_device_of_inference_that_is_none_is_refused():
    for good in ("", "cpu", "cuda:1"):
        Config(run=Run(inference_device=good))
    with pytest.raises(ValueError, match=r"run\.inference-device is gpu"):
        Config(run=Run(inference_device="gpu"))
