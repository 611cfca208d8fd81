"""Settings that differ between members: options, first values, mutations. No process, no file."""

import pytest

from sfactory.config import presets
from sfactory.config.parsing import build
from sfactory.errors import SettingError
from sfactory.population import varied
from sfactory.population.varied import (
    Mutated,
    Sampled,
    check_mutated,
    check_varied,
    default_mutate,
    first_settings,
    mutate,
    parse_mutate,
    parse_sample,
    uniform,
)

CONFIG = build(*presets.target_layers("minatar/breakout"))


def test_uniform_depends_on_every_argument_and_on_nothing_else():
    numbers = {uniform(1, 2, 3, 0), uniform(2, 2, 3, 0), uniform(1, 3, 3, 0), uniform(1, 2, 4, 0), uniform(1, 2, 3, 1)}
    numbers.add(uniform(1, 2, 3, 0, number=1))
    assert len(numbers) == 6
    assert all(0 <= number < 1 for number in numbers)
    assert uniform(1, 2, 3, 0) == uniform(1, 2, 3, 0) == 0.360468362910245
    mean = sum(uniform(7, member, 1, 0) for member in range(4000)) / 4000
    assert abs(mean - 0.5) < 0.02


def test_parse_sample_reads_lists_and_ranges():
    found = parse_sample(["optim.lr=1e-4..1e-2", "batch.epochs=1,2", "optim.schedule=constant,ess"])
    assert found == [
        Sampled("optim.lr", low=1e-4, high=1e-2), Sampled("batch.epochs", (1, 2)),
        Sampled("optim.schedule", ("constant", "ess")),
    ]  # fmt: skip


def test_parse_mutate_reads_names_and_lists():
    found = parse_mutate(["optim.lr,loss.entropy-coef", "optim.schedule=constant,ess"])
    assert found == [Mutated("optim.lr"), Mutated("loss.entropy_coef"), Mutated("optim.schedule", ("constant", "ess"))]


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_sample, "optim.lrr=1,2", "optim.lrr: no such setting; did you mean optim.lr?"),
        (parse_sample, "optim.lr", "--sample optim.lr: expected NAME=V1,V2 or NAME=LOW..HIGH"),
        (parse_sample, "optim.lr=2..1", "--sample optim.lr=2..1: the range is empty"),
        (parse_sample, "optim.lr=1,-1", "optim.lr is -1.0; it must be greater than 0"),
        (parse_sample, "env.settings.x=1,2", "env.settings.x cannot change in the middle of a run"),
        (parse_mutate, "optim.lr=1", "--mutate optim.lr=1: a list needs two values or more"),
        (parse_mutate, "optim.lr,optim.lr", "--mutate optim.lr is given twice"),
        (parse_mutate, "optim.schedule=constant,fast", "optim.schedule: 'fast' is not one of"),
    ],
)
def test_parse_refuses_what_is_neither(parse, text, message):
    with pytest.raises(SettingError, match="^" + message.replace("?", r"\?").replace(".", r"\.")):
        parse([text])


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("model.hidden", "async", "cannot change in the middle of a run"),
        ("run.seed", "async", "cannot change in the middle of a run"),
        ("sampling.rollout_length", "lockstep", "cannot change in the middle of a run"),
        ("stop.env_steps", "async", "the same for all members"),
        ("checkpoint.keep", "async", "does not change what is learned"),
        ("log.quiet", "async", "does not change what is learned"),
    ],
)
def test_check_varied_refuses_settings_that_no_member_could_take_over(name, mode, message):
    config = varied.with_settings(CONFIG, {"run.mode": mode})
    with pytest.raises(SettingError, match=message):
        check_varied(["optim.lr", name], config)
    check_varied(["optim.lr", "loss.entropy_coef", "trace.gamma", "surrogate.clip"], config)


@pytest.mark.parametrize(
    ("base", "name", "other", "refused"),
    [
        ({}, "surrogate.objective", "bpo", True),
        ({}, "surrogate.objective", "cispo", False),
        ({"surrogate.objective": "bpo", "surrogate.median_head": False}, "surrogate.objective", "ppo", False),
        ({"surrogate.objective": "bpo", "surrogate.median_head": False}, "surrogate.median_head", True, True),
    ],
)
def test_check_varied_refuses_members_of_which_some_have_a_median_head(base, name, other, refused):
    config = varied.with_settings(CONFIG, base)
    if not refused:
        check_varied([name], config, [(name, other)])
        return
    with pytest.raises(SettingError, match=f"{name.replace('_', '-')} cannot change in the middle of a run"):
        check_varied([name], config, [(name, other), ("optim.lr", 1e-3)])


def test_check_mutated_refuses_a_mutation_without_effect():
    config = varied.with_settings(CONFIG, {"loss.entropy_coef": 0.0})
    with pytest.raises(SettingError, match=r"loss\.entropy-coef: it is 0, and no factor changes that; give a list"):
        check_mutated([], [Mutated("loss.entropy_coef")], config)
    config = varied.with_settings(CONFIG, {"trace.trace_lambda": 1.0})
    with pytest.raises(SettingError, match=r"trace-lambda: it is 1, and no factor changes its distance from 1; give a"):
        check_mutated([], [Mutated("trace.trace_lambda")], config)
    check_mutated([], [Mutated("trace.trace_lambda", (0.9, 1.0))], config)
    check_mutated([Sampled("trace.trace_lambda", low=0.9, high=1.0)], [Mutated("trace.trace_lambda")], config)
    with pytest.raises(SettingError, match=r"optim\.schedule: it is no number"):
        check_mutated([], [Mutated("optim.schedule")], config)
    check_mutated([Sampled("loss.entropy_coef", (0.0, 0.1))], [Mutated("loss.entropy_coef")], config)


def test_default_mutate_is_what_is_sampled_or_rate_and_entropy():
    assert default_mutate([], CONFIG) == [Mutated("optim.lr"), Mutated("loss.entropy_coef")]
    assert default_mutate([], varied.with_settings(CONFIG, {"loss.entropy_coef": 0.0})) == [Mutated("optim.lr")]
    values = build(*presets.target_layers("pqn/minatar/breakout"))
    assert default_mutate([], values) == [Mutated("optim.lr")], "action values have no entropy bonus"
    sampled = [Sampled("trace.gamma", (0.9, 0.99)), Sampled("optim.schedule", ("ess", "constant"))]
    assert default_mutate(sampled, CONFIG) == [
        Mutated("trace.gamma"), Mutated("optim.schedule", ("ess", "constant")),
    ]  # fmt: skip


def test_first_settings_deal_every_value_to_an_equal_number_of_members():
    sampled = parse_sample(["optim.lr=1e-5,2e-3", "loss.entropy_coef=0.01..1"])
    settings = first_settings(sampled, ["optim.lr", "loss.entropy_coef", "trace.gamma"], CONFIG, 8, seed=3)
    assert sorted(one["optim.lr"] for one in settings) == [1e-5] * 4 + [2e-3] * 4
    coefficients = sorted(one["loss.entropy_coef"] for one in settings)
    for part, value in enumerate(coefficients):  # one in each eighth of the logarithms
        assert 0.01 * 100 ** (part / 8) * 0.999 <= value <= 0.01 * 100 ** ((part + 1) / 8) * 1.001
    assert {one["trace.gamma"] for one in settings} == {0.99}
    assert settings == first_settings(sampled, ["optim.lr", "loss.entropy_coef", "trace.gamma"], CONFIG, 8, seed=3)
    other = first_settings(sampled, ["optim.lr", "loss.entropy_coef", "trace.gamma"], CONFIG, 8, seed=4)
    assert [one["optim.lr"] for one in settings] != [one["optim.lr"] for one in other]


def test_first_settings_stay_in_the_range_and_differ_also_close_to_1():
    one = Sampled("trace.gamma", low=0.9999, high=0.99999)
    for seed in range(20):
        values = [settings["trace.gamma"] for settings in first_settings([one], ["trace.gamma"], CONFIG, 8, seed)]
        assert 0.9999 <= min(values) < max(values) <= 0.99999
        assert len(set(values)) == 8
    wide = Sampled("optim.lr", low=1e-5, high=1e-2)
    for settings in first_settings([wide], ["optim.lr"], CONFIG, 8, 1):
        assert settings["optim.lr"] == float(f"{settings['optim.lr']:.4g}"), "four digits, where these are enough"


def test_mutate_changes_a_share_of_the_settings_by_a_factor_in_both_directions():
    factors = []
    for member in range(2000):
        found = mutate({"optim.lr": 1e-3}, [Mutated("optim.lr")], CONFIG, 0.25, seed=1, member=member, round=4)
        factors.append(found["optim.lr"] / 1e-3)
    changed = [factor for factor in factors if factor != 1]
    assert 0.22 < len(changed) / 2000 < 0.28
    up, down = [f for f in changed if f > 1], [1 / f for f in changed if f < 1]
    assert abs(len(up) - len(down)) < 70
    for group in (up, down):
        assert min(group) >= 1.099
        assert max(group) <= 1.501
        assert min(group) < 1.13
        assert max(group) > 1.47


def test_mutate_keeps_every_setting_within_its_bounds_and_the_rules():
    names = ["trace.gamma", "optim.beta2", "batch.minibatches", "batch.epochs", "surrogate.weight_cap"]
    settings = {"trace.gamma": 0.99, "optim.beta2": 0.999, "batch.minibatches": 8, "batch.epochs": 1,
                "surrogate.weight_cap": 1.0}  # fmt: skip
    seen = {name: set() for name in names}
    for member in range(200):
        found = mutate(settings, list(map(Mutated, names)), CONFIG, 1.0, seed=1, member=member, round=1)
        varied.with_settings(CONFIG, found)  # raises for a value that is not allowed
        for name in names:
            seen[name].add(found[name])
    assert all(0.984 < gamma < 0.994 for gamma in seen["trace.gamma"]), "by its distance from 1"
    assert all(0.9984 < beta < 0.9994 for beta in seen["optim.beta2"])
    assert seen["batch.epochs"] == {2}, "1 cannot become smaller"
    assert min(seen["surrogate.weight_cap"]) > 1.0
    assert seen["batch.minibatches"] <= {8}, "no other number near 8 divides 32 lanes"


def test_mutate_takes_another_value_of_a_list():
    one = Mutated("optim.schedule", ("constant", "linear", "ess"))
    found = [mutate({one.name: "linear"}, [one], CONFIG, 1.0, 1, member, 1)[one.name] for member in range(100)]
    assert set(found) == {"constant", "ess"}
    assert 30 < found.count("ess") < 70
