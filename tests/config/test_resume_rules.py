"""What a resume does with every setting of the schema."""

import pytest

from sfactory.config import Config, Env, with_settings
from sfactory.config.parsing import field_types, flag_name
from sfactory.config.resume_rules import FIXED, FIXED_IN_LOCKSTEP, FREE, Rule, changed_settings, refuse_changes, rule_of
from sfactory.errors import CommandError, Exit

NAMES = [flag_name(name) for name in field_types()]


def test_rule_of_a_setting_comes_from_a_prefix_that_names_a_setting():
    for prefix in (*FIXED, *FIXED_IN_LOCKSTEP, *FREE):
        assert any(name.startswith(prefix) for name in NAMES), prefix


def test_no_setting_is_both_free_and_fixed():
    assert not [name for name in NAMES if name.startswith(FREE) and name.startswith((*FIXED, *FIXED_IN_LOCKSTEP))]


@pytest.mark.parametrize(
    "section", ["batch", "replay", "sampling", "trace", "proximal", "surrogate", "loss", "optim", "normalize", "model"]
)
def test_no_setting_of_learning_changes_silently(section):
    rules = {rule_of(name) for name in NAMES if name.startswith(f"{section}.")}
    assert rules
    assert Rule.FREE not in rules


@pytest.mark.parametrize(
    ("name", "lockstep", "linear", "rule"),
    [
        ("run.precision", False, False, Rule.WARNS),
        ("run.kernels", False, False, Rule.WARNS),
        ("run.device", False, False, Rule.WARNS),
        ("run.seed", False, False, Rule.REFUSED),
        ("run.learner-threads", True, False, Rule.FREE),
        ("sampling.slots-per-group", False, False, Rule.WARNS),
        ("sampling.slots-per-group", True, False, Rule.REFUSED),
        ("batch.factor", True, False, Rule.REFUSED),
        ("batch.minibatches", True, False, Rule.WARNS),
        ("stop.env-steps", False, False, Rule.FREE),
        ("stop.env-steps", False, True, Rule.WARNS),
        ("stop.frames", False, True, Rule.FREE),
        ("env.reward-scale", False, False, Rule.WARNS),
        ("env.wrapper-settings", False, False, Rule.REFUSED),
        ("env.agent-id", False, False, Rule.REFUSED),
        ("env.pad-spaces", False, False, Rule.REFUSED),
        ("eval.episodes", False, False, Rule.WARNS),
        ("a.new-setting", False, False, Rule.WARNS),
    ],
)
def test_rule_of_a_setting(name, lockstep, linear, rule):
    assert rule_of(name, lockstep, linear) is rule


def test_changed_settings_tells_a_stretched_linear_schedule():
    constant = with_settings(Config(env=Env("a/b")), {"stop.env_steps": 100_000})
    linear = with_settings(constant, {"optim.schedule": "linear"})
    longer = {"stop.env_steps": 200_000}
    assert changed_settings(constant, with_settings(constant, longer)) == []
    (line,) = changed_settings(linear, with_settings(linear, longer))
    assert line.startswith("warning: stop.env-steps was 100000 and is 200000 from here on")


def test_changed_settings_tells_what_was_allowed_too(capsys):
    before = Config(env=Env("a/b"))
    after = with_settings(before, {"run.seed": 7, "optim.beta1": 0.5, "stop.seconds": 9.0})
    with pytest.raises(CommandError, match=r"run\.seed cannot change in the middle of a run") as caught:
        refuse_changes(before, after, [])
    assert caught.value.exit_code == Exit.RESUME_REFUSED
    assert capsys.readouterr().err == "  run.seed                 1 -> 7\n"
    refuse_changes(before, after, ["run.seed"])
    assert [line.split()[1] for line in changed_settings(before, after)] == ["run.seed", "optim.beta1"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"surrogate.objective": "decoupled"}, {"surrogate.objective": "bpo"}),
        ({"surrogate.objective": "bpo"}, {"surrogate.median_head": False}),
    ],
)
def test_a_resume_cannot_add_or_remove_the_median_head(capsys, before, after):
    start = with_settings(Config(env=Env("a/b")), before)
    (name,) = map(flag_name, after)
    for one, other in ((start, with_settings(start, after)), (with_settings(start, after), start)):
        with pytest.raises(CommandError, match=name) as caught:
            refuse_changes(one, other, [])
        assert caught.value.exit_code == Exit.RESUME_REFUSED
    without = with_settings(start, {"surrogate.objective": "bpo", "surrogate.median_head": False})
    refuse_changes(without, with_settings(without, {"surrogate.objective": "sapo", "surrogate.median_head": True}), [])


def test_changed_settings_tells_a_stretched_annealing():
    before = with_settings(Config(env=Env("a/b")), {"stop.env_steps": 100_000, "surrogate.objective": "mdpo"})
    after = with_settings(before, {"stop.env_steps": 200_000})
    (line,) = changed_settings(before, after)
    assert line.startswith("warning: stop.env-steps was 100000 and is 200000 from here on")
    fixed = {"surrogate.kl_anneal": False}
    assert changed_settings(with_settings(before, fixed), with_settings(after, fixed)) == []
