"""Every number of the schema has a range, and values just outside are refused from every source."""

import math
import tomllib
from dataclasses import replace

import pytest

import sfactory
from sfactory.cli import main as cli
from sfactory.config import Config, to_dict, with_settings
from sfactory.config.bounds import (
    LARGEST,
    AnyNumber,
    Below,
    Between,
    Each,
    Ge,
    Gt,
    Not,
    Seconds,
    ZeroOr,
    bounds_of,
)
from sfactory.config.parsing import field_types, flag_name
from sfactory.config.toml_file import from_toml

NUMBERS = {name: kind for name, kind in field_types().items() if kind in (int, float, float | None, tuple[int, ...])}


def declared(name):
    """The one range of a setting."""
    bounds = bounds_of(Config)[tuple(name.split("."))]
    assert len(bounds) == 1, f"{name} has no range; write one beside the field, AnyNumber() if every number is allowed"
    return bounds[0]


def below(kind, value):
    return value - 1 if kind is not float else math.nextafter(value, -math.inf)


def above(kind, value):
    return value + 1 if kind is not float else math.nextafter(value, math.inf)


def outside(bound, kind):
    """Values just outside a bound."""
    match bound:
        case Ge(low):
            return [below(kind, low)]
        case Gt(low):
            return [low, below(kind, low)]
        case Between(low, high):
            return [below(kind, low), above(kind, high)]
        case Below(low, high):
            return [below(kind, low), high]
        case Seconds():
            return [0.0, -1.0, 86_400.1]
        case Not(excluded):
            return [excluded]
        case ZeroOr(inner):
            return [-1.0, *(value for value in outside(inner, kind) if value != 0)]
        case Each(inner):
            return [(value,) for value in outside(inner, int)] + [(64, value) for value in outside(inner, int)]
        case AnyNumber():
            return []
    raise AssertionError(f"{bound}: which values are outside?")


def inside(bound, kind):
    """Values at the edge of a bound that are allowed."""
    match bound:
        case Ge(low):
            return [low]
        case Gt(low):
            return [above(kind, low)]
        case Between(low, high):
            return [low, high]
        case Below(low, high):
            return [low, below(float, high)]
        case Seconds():
            return [0.1, 86_400.0]
        case Not(excluded):
            return [above(kind, excluded), below(kind, excluded)]
        case ZeroOr(inner):
            return [0.0, *inside(inner, kind)]
        case Each(inner):
            return [(value,) for value in inside(inner, int)]
    return [-1e18, 1e18]


def no_numbers(kind):
    """Numbers that no setting can have."""
    if kind is tuple[int, ...]:
        return [(LARGEST + 1,), (-LARGEST - 1,)]
    return [LARGEST + 1, -LARGEST - 1] if kind is int else [math.nan, math.inf, -math.inf, 2.0**64]


CASES = [
    (name, value) for name, kind in NUMBERS.items() for value in (*outside(declared(name), kind), *no_numbers(kind))
]


def as_typed(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def test_every_number_of_the_schema_has_a_range():
    assert len(NUMBERS) > 50
    for name in NUMBERS:
        assert declared(name).text


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_allow_the_values_at_their_edges(name):
    section, key = name.split(".")
    part = getattr(Config(), section)
    for value in inside(declared(name), NUMBERS[name]):
        bound = declared(name)
        assert bound.holds(value), (name, value)
        assert AnyNumber().holds(value[0] if isinstance(value, tuple) else value)
        assert replace(part, **{key: value})


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("name", "value"), CASES)
def test_values_outside_a_bound_are_refused_from_command_line_toml_and_python(tmp_path, capsys, name, value):
    section, key = name.split(".")
    flag = f"{section}.{flag_name(key)}"
    toml = str(list(value)) if isinstance(value, tuple) else str(value)
    (tmp_path / "my.toml").write_text(f"[{section}]\n{key} = {toml}\n")
    assert tomllib.loads((tmp_path / "my.toml").read_text())  # TOML has inf and nan, too
    for words in ([f"--{flag}={as_typed(value)}"], ["--config", str(tmp_path / "my.toml")]):
        with pytest.raises(SystemExit) as left:
            cli.main(["train", "classic/cartpole", *words, "--print-config"])
        out, err = capsys.readouterr()
        assert left.value.code == 2, words
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert flag in err
    for build in (
        lambda: sfactory.make_config("classic/cartpole", **{section: {key: value}}),
        lambda: direct(name, value),
    ):
        with pytest.raises(ValueError) as caught:
            build()
        assert flag in str(caught.value)
        assert "\n" not in str(caught.value)


def direct(name, value):
    """A configuration that is built without parsing."""
    section, key = name.split(".")
    return Config(**{section: replace(getattr(Config(), section), **{key: value})})


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("surrogate.dual-clip", 1.0, "0 or greater than 1"),
        ("surrogate.clip", 0.0, "greater than 0"),
        ("surrogate.weight-cap", 0.5, "at least 1"),
        ("env.reward-clip", -1.0, "0 or more"),
        ("env.reward-scale", 0.0, "any number but 0"),
        ("trace.c-bar", 0.0, "greater than 0"),
        ("trace.pg-rho-bar", 0.0, "greater than 0"),
        ("trace.gamma", 1.01, "between 0 and 1"),
        ("normalize.advantage-span", 0.5, "at least 1"),
        ("optim.beta1", 1.0, "at least 0 and less than 1"),
        ("optim.kl-target", 0.0, "greater than 0"),
        ("proximal.center-of-mass", -1.0, "0 or more"),
        ("env.step-timeout", 1e6, "greater than 0 and at most 86400 (a day)"),
        ("model.hidden", (64, 0), "numbers that are between 1 and 65536"),
        ("stop.seconds", math.inf, "a finite number below 2^63 (9.2e18)"),
    ],
)
def test_check_bounds_says_what_a_value_must_be(setting, value, expected):
    with pytest.raises(ValueError) as caught:
        direct(setting.replace("-", "_"), value)
    assert str(caught.value) == f"{setting} is {as_typed(value)}; it must be {expected}"


@pytest.mark.parametrize("text", ["1e999999999", "1e99999999999999999999", "-1e999999999", "9" * 5000])
@pytest.mark.parametrize("name", ["stop.env-steps", "optim.lr"])
def test_a_number_of_any_length_is_refused_at_once_in_one_line(capsys, name, text):
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "classic/cartpole", f"--{name}={text}", "--print-config"])
    err = capsys.readouterr().err
    assert left.value.code == 2
    assert len(err.splitlines()) == 1
    assert name in err


def test_a_run_folder_with_a_value_outside_its_bound_is_named(tmp_path):
    settings = sfactory.make_config("classic/cartpole")
    assert to_dict(settings)
    (tmp_path / "config.toml").write_text("[surrogate]\ndual_clip = 0.5\n")
    with pytest.raises(ValueError, match=r"surrogate.dual-clip is 0.5; it must be 0 or greater than 1"):
        from_toml(tmp_path / "config.toml")


@pytest.mark.parametrize("estimator", ["vtrace", "leaky_vtrace"])
def test_check_trace_refuses_a_trace_coefficient_above_rho_bar(estimator):
    with pytest.raises(ValueError) as caught:
        sfactory.make_config("classic/cartpole", trace={"estimator": estimator, "c_bar": 1.5})
    assert str(caught.value) == (
        f"trace.c-bar 1.5 with trace.rho-bar 1: {estimator} needs rho-bar >= c-bar (arXiv 1802.01561); lower "
        "trace.c-bar or raise trace.rho-bar"
    )
    assert sfactory.make_config("classic/cartpole", trace={"estimator": estimator, "c_bar": 1.5, "rho_bar": 1.5})


def test_check_batch_names_minibatches_for_a_batch_of_any_size():
    sampling = {"num_samplers": 4000, "groups_per_sampler": 1, "envs_per_group": 200}
    with pytest.raises(ValueError, match=r"must divide into 7 minibatches; try batch.minibatches 5 or 8"):
        sfactory.make_config("classic/cartpole", sampling=sampling, batch={"minibatches": 7})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay.ratio": 0.3}, "replay.ratio 0.3 of a batch of 2 slots is 0.6 slots, .*; try 0.5"),
        ({"replay.ratio": 1.2}, "is 2.4 slots, .*; try 1 or 1.5"),
        ({"replay.ratio": 0.1}, "is 0.2 slots, .*; try 0.5"),
        ({"replay.ratio": 5.0}, "replay.ratio 5 needs that many older batches, .*max-age 4 .*; set .* to 5 or more"),
        (
            {"replay.ratio": 0.5, "batch.minibatches": 32, "sampling.envs_per_group": 16},
            "16 replayed lanes .* 32",
        ),
        ({"replay.ratio": 1.0, "replay.max_age": 10_000}, "holds 1.28e.06 lanes and trains on 256; at most 1,048,576"),
        ({"replay.max_age": 0}, "replay.max-age is 0; it must be between 1 and 10000"),
        ({"replay.ratio": -1.0}, "replay.ratio is -1.0; it must be between 0 and 64"),
    ],
)
def test_replay_that_cannot_be_had_is_refused_with_what_to_change(settings, message):
    with pytest.raises(ValueError, match=message) as refusal:
        with_settings(Config(), settings)
    assert "\n" not in str(refusal.value)


def test_replay_may_have_any_whole_number_of_slots():
    for ratio, slots in ((0.5, 1), (1.0, 2), (2.5, 5), (4.0, 8)):
        config = with_settings(Config(), {"replay.ratio": ratio})
        assert (config.replayed_slots, config.held_slots) == (slots, 8)
        assert config.trained_rows == round((1 + ratio) * config.batch_rows)
    thirds = with_settings(Config(), {"sampling.groups_per_sampler": 3, "replay.ratio": 1 / 3})
    assert thirds.replayed_slots == 1
    assert Config().held_slots == Config().replayed_slots == 0
