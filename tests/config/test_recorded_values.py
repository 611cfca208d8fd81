"""Values that a new run cannot have: refused there, and read as what they mean where a run has recorded them."""

import warnings

import pytest

import sfactory
import sfactory.api
from sfactory.config import Config, Env, parsing, with_settings
from sfactory.config.cross_checks import EFFECTS, ReplaceableValue
from sfactory.config.flags import split_flags
from sfactory.config.parsing import build, field_type, flag_name
from sfactory.config.presets import read_toml, recorded_layer
from sfactory.config.toml_file import from_toml, to_toml
from sfactory.errors import SettingError, SettingNote
from sfactory.play.evaluate import changed_config

OF_POOL = ("pool", "games", "admit", "every", "initial", "opponents")
LAYERS = ("encoder", "hidden", "activation", "layer_norm", "separate")
USED = {
    "trace.rho_bar": {"trace.estimator": "rbis"},
    "trace.c_bar": {"trace.estimator": "vtrace"},
    "trace.pg_rho_bar": {"trace.estimator": "vtrace", "surrogate.behavior_weight": "trace"},
    "trace.leak": {"trace.estimator": "leaky_vtrace"},
    "trace.baseline": {"surrogate.objective": "decoupled"},
    "model.pooling": {"model.encoder": "impala"},
    "model.value_bins": {"model.value_head": "hl_gauss"},
    "model.value_low": {"model.value_head": "hl_gauss"},
    "model.value_high": {"model.value_head": "hl_gauss"},
    "loss.value_sigma": {"model.value_head": "hl_gauss"},
    "optim.decay_share": {"optim.schedule": "linear", "stop.env_steps": 1000},
    "optim.kl_target": {"optim.schedule": "kl_adaptive"},
    "optim.lr_min": {"optim.schedule": "kl_adaptive"},
    "optim.lr_max": {"optim.schedule": "kl_adaptive"},
    "optim.sfpo_alpha": {"optim.sfpo_steps": 2},
    "optim.sfpo_window": {"optim.sfpo_steps": 2},
    "optim.sfpo_threshold": {"optim.sfpo_steps": 2},
    "eval.video": {"eval.every": 1000},
    "eval.episodes": {"eval.every": 1000},
    "eval.greedy": {"eval.every": 1000},
    **{f"selfplay.{name}": {"selfplay.share": 0.5} for name in OF_POOL},
    "model.core_size": {"model.core": "gru"},
    **{f"model.{name}": {"model.network": ""} for name in LAYERS},
    "pqn.epsilon_fraction": {"pqn.epsilon_start": 1.0},
    "proximal.policy": {"surrogate.mask": "erc"},
    "proximal.center_of_mass": {"proximal.policy": "ewma"},
    "proximal.snapshot_age": {"proximal.policy": "snapshot"},
    "proximal.snapshots_kept": {"proximal.policy": "snapshot", "proximal.snapshot_age": 0},
    "replay.max_age": {"replay.ratio": 1.0},
    "normalize.advantage": {"surrogate.objective": "decoupled"},
    "normalize.advantage_span": {"normalize.advantage": True},
}
"""Setting -> what gives it an effect."""
UNUSED = {
    "trace.baseline": {"surrogate.objective": "bpo"},
    "normalize.advantage": {"surrogate.objective": "bpo"},
    "normalize.advantage_span": {"normalize.advantage": False},
    **{f"model.{name}": {"model.network": "my_net:Mine"} for name in LAYERS},
    "pqn.epsilon_fraction": {"algorithm.name": "pqn", "pqn.epsilon_start": 0.1, "pqn.epsilon_end": 0.1},
    "proximal.policy": {"surrogate.objective": "cispo"},
}  # fmt: skip
"""Setting -> what takes its effect away, where it has one by default."""


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch):
    monkeypatch.setattr(parsing, "_reported", set())


@pytest.fixture
def recorded(tmp_path):
    """Write the config.toml of a run that has other values than a new run may have."""

    def write(changes):
        lines = to_toml(Config(env=Env("classic/cartpole"))).splitlines()
        for name, value in changes.items():
            section, _, key = name.partition(".")
            start = lines.index(f"[{section}]")
            place = next(i for i in range(start, len(lines)) if lines[i].startswith(f"{key} = "))
            lines[place] = f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        path = tmp_path / "run" / "config.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines))
        return path

    return write


def flags(*words):
    return split_flags(words, {})[0]


def another(name):
    """A value besides the default that is within the bounds, or among the choices."""
    choices = {
        "trace.baseline": "optimal", "model.pooling": "average", "model.encoder": "mlp", "model.hidden": (64,),
        "model.activation": "tanh", "selfplay.opponents": "runs/a", "selfplay.admit": 0.7, "proximal.policy": "ewma",
        "pqn.epsilon_fraction": 0.2,
    }  # fmt: skip
    if name in choices:
        return choices[name]
    section, _, key = name.partition(".")
    value = getattr(getattr(Config(), section), key)
    if isinstance(value, bool):
        return not value
    if field_type(name) is int:
        return value * 2
    return value * 0.75 if value > 1 or name.startswith(("trace", "optim")) else value + 1.5


@pytest.mark.parametrize("name", EFFECTS)
def test_option_without_effect_is_refused_and_accepted_where_it_is_read(name):
    config = with_settings(Config(env=Env("classic/cartpole")), UNUSED.get(name, {}))
    with pytest.raises(ReplaceableValue, match=f"^{flag_name(name)} .* has no effect with") as caught:
        with_settings(config, {name: another(name)})
    section, _, key = name.partition(".")
    assert (caught.value.setting, caught.value.other) == (name, getattr(getattr(config, section), key))
    assert with_settings(config, {"batch.epochs": 1, **USED[name], name: another(name)})


def test_recorded_option_without_effect_is_read_as_its_default_with_one_note(recorded, recwarn):
    path = recorded({"optim.kl_target": 0.02, "surrogate.kl_coef": 0.5, "trace.leak": 0.25})
    config = from_toml(path)
    assert config == Config(env=Env("classic/cartpole"))
    texts = [str(one.message) for one in recwarn if issubclass(one.category, SettingNote)]
    assert texts == [
        f"{path}: trace.leak 0.25 has no effect without trace.estimator leaky_vtrace; read as 1.0",
        f"{path}: optim.kl-target 0.02 has no effect without optim.schedule kl_adaptive; read as 0.01",
        f"{path}: surrogate.kl-coef 0.5 has no effect with surrogate.objective decoupled; read as 1.0",
    ]
    recwarn.clear()
    assert from_toml(path) == config
    assert not recwarn.list, "each is reported once"


def test_recorded_values_of_another_algorithm_are_read_as_their_defaults(recorded):
    with pytest.warns(SettingNote, match=r"ppg\.phase-epochs 3 has no effect: algorithm\.name actor_critic does not"):
        assert from_toml(recorded({"ppg.phase_epochs": 3})).ppg.phase_epochs == 6


def test_recorded_rate_outside_of_the_bounds_of_kl_adaptive_is_the_nearest_one(recorded):
    path = recorded({"optim.schedule": "kl_adaptive", "optim.lr": 0.05})
    with pytest.warns(SettingNote, match=r"optim\.lr 0\.05 is outside .* moves it; read as 0\.01"):
        assert from_toml(path).optim.lr == 0.01


def test_file_of_a_run_is_refused_in_a_new_run(recorded):
    path = recorded({"optim.kl_target": 0.02})
    with pytest.raises(SettingError, match=r"optim\.kl-target 0\.02 has no effect"):
        build(read_toml(path))


def test_flag_without_effect_is_refused_over_recorded_settings(recorded):
    path = recorded({"optim.kl_target": 0.02})
    with pytest.raises(SettingError, match=r"optim\.kl-target 0\.03 has no effect"):
        build(recorded_layer(path), flags("--optim.kl-target", "0.03"))


def test_recorded_option_gives_way_to_a_changed_objective(recorded):
    path = recorded({"surrogate.objective": "sapo", "surrogate.gate_temperature": 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert from_toml(path).surrogate.gate_temperature == 0.5
    with pytest.warns(SettingNote, match=r"gate-temperature 0\.5 has no effect .*objective cispo; read as 1"):
        changed = build(recorded_layer(path), flags("--surrogate.objective", "cispo"))
    assert (changed.surrogate.objective, changed.surrogate.gate_temperature) == ("cispo", 1.0)


def test_resume_from_python_reads_recorded_options_as_the_command_does(recorded, monkeypatch):
    path = recorded({"surrogate.objective": "sapo", "surrogate.gate_temperature": 0.5})
    monkeypatch.setattr(sfactory.api, "resume_config", lambda run_dir, config, *others: config)
    with pytest.warns(SettingNote, match="gate-temperature"):
        changed = sfactory.resume(path.parent, check=False, surrogate={"objective": "cispo"})
    assert (changed.surrogate.objective, changed.surrogate.gate_temperature) == ("cispo", 1.0)


def test_a_conflict_of_recorded_settings_is_still_refused(recorded):
    with pytest.raises(SettingError, match="must divide into 3 minibatches"):
        from_toml(recorded({"batch.minibatches": 3}))


def test_evaluation_reads_recorded_options_without_effect(recorded):
    path = recorded({"optim.kl_target": 0.02})
    with pytest.warns(SettingNote):
        trained, config = changed_config(path.parent / "checkpoints" / "000", {})
    assert trained == config == build({"env.name": parsing.RawValue("classic/cartpole")})
