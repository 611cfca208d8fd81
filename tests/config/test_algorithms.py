"""`algorithm.name`: whose settings count, which have no effect, and what a preset for another algorithm gives."""

import pytest

from sfactory.config import Config, parsing, presets, with_settings
from sfactory.config.algorithms import ALGORITHMS, unused_settings
from sfactory.config.flags import split_flags
from sfactory.config.parsing import field_types
from sfactory.config.resume_rules import Rule, changes, rule_of
from sfactory.errors import SettingError
from sfactory.learning.objectives import OBJECTIVES, objective_class


def config(target, *flags, files=()):
    return parsing.build(*presets.target_layers(target, files), split_flags(flags)[0])


def test_every_algorithm_has_rules_and_an_objective():
    assert set(ALGORITHMS) == set(OBJECTIVES) == set(field_types()["algorithm.name"].__args__)
    for name in ALGORITHMS:
        assert objective_class(with_settings(Config(), {"algorithm.name": name})) is OBJECTIVES[name]


def test_rules_name_settings_that_exist():
    names = [*field_types()]
    for rules in ALGORITHMS.values():
        for prefix in rules.unused:
            assert any(name.startswith(prefix) for name in names), prefix
        assert {*rules.used, *rules.values} <= set(names)
        assert all(rules.uses(name) for name in (*rules.used, *rules.values))


def test_no_default_is_without_effect():
    for name in ALGORITHMS:
        assert unused_settings(with_settings(Config(), {"algorithm.name": name})) == {}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--surrogate.clip", "0.1"], "surrogate.clip 0.1 has no effect: algorithm.name pqn does not use it; leave it"),
        (["--trace.estimator", "vtrace"], "trace.estimator vtrace has no effect"),
        (["--normalize.advantage", "false"], "normalize.advantage false has no effect"),
        (["--loss.entropy-coef", "0"], "loss.entropy-coef 0 has no effect"),
        (["--proximal.policy", "ewma"], "proximal.policy ewma has no effect"),
        (["--optim.sfpo-steps", "3", "--batch.epochs", "1"], "optim.sfpo-steps 3 has no effect"),
        (["--trace.baseline", "optimal"], "trace.baseline optimal has no effect"),
        (["--optim.schedule", "ess"], "optim.schedule ess reads a policy's distance"),
        (["--optim.schedule", "kl_adaptive"], "optim.schedule kl_adaptive reads"),
        (["--stop.env-steps", "0", "--optim.schedule", "constant"], "pqn.epsilon-end is reached after a fraction of"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused_in_one_line(flags, line):
    for target in ("minatar/breakout", "pqn/minatar/breakout"):
        with pytest.raises(SettingError) as caught:
            config(target, "--algorithm.name", "pqn", *flags)
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--trace.estimator", "vtrace"], "trace.estimator vtrace has no effect: algorithm.name dae does not use it"),
        (["--trace.baseline", "optimal"], "trace.baseline optimal has no effect"),
        (["--loss.value-clip", "0.2"], "loss.value-clip 0.2 has no effect"),
        (["--normalize.advantage-span", "3"], "normalize.advantage-span 3 has no effect"),
        (["--pqn.epsilon-end", "0.1"], "pqn.epsilon-end 0.1 has no effect"),
        (["--surrogate.objective", "bpo"], "surrogate.objective bpo with algorithm.name dae, whose advantages it does"),
        (["--dae.advantages", "all", "--surrogate.objective", "cispo"], "surrogate.objective cispo has no effect with"),
        (["--dae.advantages", "all", "--surrogate.mask", "erc"], "surrogate.mask erc has no effect with"),
        (["--dae.advantages", "all", "--surrogate.weight-cap", "5"], "surrogate.weight-cap 5 has no effect"),
        (["--dae.advantages", "all", "--surrogate.behavior-weight", "none"], "surrogate.behavior-weight none has no"),
        (["--dae.advantages", "all", "--proximal.policy", "interpolate"], "dae.advantages all needs the probabilities"),
        (["--dae.advantages", "all", "--proximal.policy", "snapshot", "--proximal.snapshot-age", "0"], "0 has none"),
    ],
)  # fmt: skip
def test_what_learned_advantages_exclude_is_refused_in_one_line(flags, line):
    with pytest.raises(SettingError) as caught:
        config("minatar/breakout", "--algorithm.name", "dae", *flags)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dae_accepts_what_its_loss_of_actions_taken_reads():
    flags = ("--algorithm.name", "dae", "--dae.advantages")
    for setting in ("taken", "returns"):
        found = config("minatar/breakout", *flags, setting, "--surrogate.mask", "erc", "--surrogate.objective", "cispo")
        assert (found.surrogate.mask, found.surrogate.objective) == ("erc", "cispo")
        assert config("minatar/breakout", *flags, setting, "--proximal.policy", "interpolate").dae.advantages == setting
    for setting in ("all", "taken", "returns"):
        with pytest.raises(SettingError, match=r"surrogate\.objective bpo with algorithm\.name dae"):
            config("minatar/breakout", *flags, setting, "--surrogate.objective", "bpo")
    with pytest.raises(
        SettingError, match=r"dae\.advantages taken has no effect: algorithm\.name actor_critic does not"
    ):
        config("minatar/breakout", "--dae.advantages", "taken")


def test_settings_of_another_algorithm_are_refused():
    with pytest.raises(SettingError, match=r"pqn\.epsilon-end 0\.1 has no effect: algorithm\.name actor_critic"):
        config("minatar/breakout", "--pqn.epsilon-end", "0.1")


def test_ppg_uses_everything_of_the_actor_critic_and_keeps_its_preset():
    plain, ppg = config("minatar/breakout"), config("minatar/breakout", "--algorithm.name", "ppg")
    assert with_settings(ppg, {"algorithm.name": "actor_critic"}) == plain
    with pytest.raises(SettingError, match=r"replay\.ratio 1 with algorithm\.name ppg"):
        config("minatar/breakout", "--algorithm.name", "ppg", "--replay.ratio", "1")
    assert config("minatar/breakout", "--algorithm.name", "pqn", "--replay.ratio", "1").replay.ratio == 1
    with pytest.raises(SettingError, match=r"ppg\.phase-epochs 3 has no effect: algorithm\.name actor_critic"):
        config("minatar/breakout", "--ppg.phase-epochs", "3")


def test_a_run_without_a_limit_needs_a_constant_epsilon():
    flags = ("--algorithm.name", "pqn", "--stop.env-steps", "0", "--stop.seconds", "5", "--optim.schedule", "constant")
    assert config("minatar/breakout", *flags, "--pqn.epsilon-start", "0.05").pqn.epsilon_start == 0.05


@pytest.mark.parametrize("game", ["asterix", "breakout", "freeway", "seaquest", "space_invaders"])
def test_the_presets_have_the_settings_that_the_algorithm_has_over_another_preset(game):
    assert config(f"minatar/{game}", "--algorithm.name", "pqn") == config(f"pqn/minatar/{game}")


def test_a_preset_for_another_algorithm_gives_the_environment_and_what_is_shared():
    plain, q = config("minatar/freeway"), config("minatar/freeway", "--algorithm.name", "pqn")
    assert (q.env, q.stop, q.model.encoder, q.trace.gamma) == (plain.env, plain.stop, "minatar", plain.trace.gamma)
    assert plain.normalize.value_targets
    assert not q.normalize.value_targets
    assert config("minatar/freeway", "--algorithm.name", "actor_critic") == plain


def test_a_preset_for_the_algorithm_keeps_its_own_values():
    values = {"algorithm.name": "pqn", "optim.lr": 0.25, "batch.epochs": 3}
    own = parsing.build({name: parsing.RawValue(value, preset=True) for name, value in values.items()})
    assert (own.optim.lr, own.batch.epochs, own.batch.minibatches) == (0.25, 3, Config().batch.minibatches)


def test_files_and_flags_win_over_the_values_of_the_algorithm(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[algorithm]\nname = "pqn"\n[optim]\nlr = 0.25\n[batch]\nepochs = 3\n')
    q = config("minatar/breakout", "--batch.epochs", "5", files=[path])
    assert (q.optim.lr, q.batch.epochs, q.batch.minibatches) == (0.25, 5, 32)
    path.write_text('[algorithm]\nname = "pqn"\n[surrogate]\nclip = 0.1\n')
    with pytest.raises(SettingError, match=r"surrogate\.clip 0\.1 has no effect"):
        config("minatar/breakout", files=[path])


def test_the_flag_wins_over_the_algorithm_of_a_file(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[algorithm]\nname = "pqn"\n')
    assert config("minatar/breakout", "--algorithm.name", "actor_critic", files=[path]) == config("minatar/breakout")


def test_an_unknown_algorithm_is_reported_as_such():
    with pytest.raises(SettingError, match=r"algorithm\.name: 'pqm' is not one of actor_critic, dae, ppg, pqn"):
        config("minatar/breakout", "--algorithm.name", "pqm")


def test_a_resume_refuses_another_algorithm_and_tells_a_stretched_epsilon():
    assert rule_of("algorithm.name") is Rule.REFUSED
    assert rule_of("pqn.epsilon-end") is Rule.WARNS
    assert rule_of("ppg.policy-updates") is Rule.WARNS
    assert rule_of("ppg.policy-updates", lockstep=True) is Rule.REFUSED
    before = config("minatar/breakout", "--algorithm.name", "pqn", "--optim.schedule", "constant")
    after = with_settings(before, {"stop.env_steps": before.stop.env_steps + 1})
    assert list(changes(before, after, Rule.WARNS)) == ["stop.env-steps"]


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"surrogate.behavior_weight": "trace"}, {"surrogate.behavior_weight": "surrogate"}),
        ({"surrogate.behavior_weight": "twice"}, {"surrogate.behavior_weight": "surrogate"}),
        ({"surrogate.objective": "impala"}, {"surrogate.objective": "decoupled"}),
    ],
)
def test_advice_about_the_weight_of_stale_data_is_not_refused_in_turn(settings, advice):
    """dae has no traces, so that another trace is no advice."""
    ((name, value),) = advice.items()
    with pytest.raises(ValueError, match=f"; use {name.replace('_', '-')} {value}$"):
        with_settings(Config(), {"algorithm.name": "dae", **settings})
    with_settings(Config(), {"algorithm.name": "dae", **settings, **advice})
    with pytest.raises(ValueError, match=r"use .*trace.estimator vtrace"):
        with_settings(Config(), settings)
