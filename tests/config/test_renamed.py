"""Old names of settings: accepted in every source, translated, and reported once."""

import pytest

import sfactory
from sfactory.config import Config, renamed, resume_rules, to_dict, with_settings
from sfactory.config.flags import split_flags
from sfactory.config.parsing import build, check_name, field_types
from sfactory.config.presets import read_toml, target_layers
from sfactory.config.renamed import RENAMED, current_name, original_name
from sfactory.config.toml_file import from_toml
from sfactory.errors import CommandError, SettingError, SettingNote

OLD_SECTION = """\
[run]
mode = "lockstep"

[env]
name = "classic/cartpole"

[learning]
batch_slots = 0
epochs = 2
minibatches = 4
shuffle = "lanes"
gamma = 0.97
trace_lambda = 0.9
trace = "leaky_vtrace"
rho_bar = 1.5
c_bar = 1.25
pg_rho_bar = 1.75
leak = 0.5
proximal = "ewma"
proximal_com = 3.0
snapshot_age = 1
snapshots_kept = 8
surrogate = "decoupled"
clip = 0.1
dual_clip = 3.0
kl_coef = 1.0
weight_cap = 50.0
behavior_weight = "twice"
value_coef = 0.25
value_clip = 0.2
entropy_coef = 0.02
forced_lag = 1
batch_factor = 0.5
batch_rule = "more_minibatches"
precision = "bf16"
nonfinite_budget = 7
"""
"""A config.toml as it was written before `learning` was split."""


@pytest.fixture(autouse=True)
def nothing_reported(monkeypatch):
    monkeypatch.setattr(renamed, "_reported", set())


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(OLD_SECTION)
    return path


def flags(*words):
    layer, _, positionals = split_flags(words, {})
    assert not positionals
    return layer


def test_renamed_names_exist_and_are_distinct():
    assert set(RENAMED.values()) <= set(field_types())
    assert len(set(RENAMED.values())) == len(RENAMED) == 29
    assert not set(RENAMED) & set(field_types())
    assert all(original_name(current_name(old)) == old for old in RENAMED)
    assert current_name("optim.lr") == original_name("optim.lr") == "optim.lr"


def test_an_old_config_file_is_read_silently_by_both_readers(old_file, capsys):
    config = from_toml(old_file)
    assert build(read_toml(old_file)) == config
    assert capsys.readouterr() == ("", "")
    values = to_dict(config)
    for line in OLD_SECTION.partition("[learning]\n")[2].splitlines():
        key, _, text = line.partition(" = ")
        section, _, field = RENAMED[f"learning.{key}"].partition(".")
        value = values[section][field]
        assert text in (str(value), f'"{value}"'), line


def test_resuming_an_old_run_shows_no_differences(old_file, capsys):
    before = build(read_toml(old_file))
    after = build(read_toml(old_file), flags("--stop.env-steps", "20M"))
    resume_rules.refuse_changes(before, after, [])
    linear = before.optim.schedule == "linear"
    assert len(resume_rules.changed_settings(before, after)) == linear
    assert capsys.readouterr() == ("", "")


def notes(caught):
    """Texts of the notes since the last call."""
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, SettingNote)]
    caught.clear()
    return texts


def test_old_flags_are_accepted_with_one_line_per_name(recwarn):
    target = target_layers("minatar/breakout")
    old = build(*target, flags("--learning.epochs", "2", "--learning.trace=vtrace"))
    new = build(*target, flags("--batch.epochs", "2", "--trace.estimator=vtrace"))
    assert old == new
    assert notes(recwarn) == [
        "learning.epochs is now batch.epochs, learning.trace is now trace.estimator (old names still work)"
    ]
    build(*target, flags("--learning.epochs", "3"))
    assert notes(recwarn) == [], "each name is reported once"


def test_old_names_in_a_file_of_a_person_and_in_python_are_reported(tmp_path, recwarn):
    path = tmp_path / "my.toml"
    path.write_text('[learning]\nprecision = "bf16"\n')
    assert build(*target_layers("minatar/breakout", [path])).run.precision == "bf16"
    assert notes(recwarn) == ["learning.precision is now run.precision (old names still work)"]
    assert sfactory.make_config("minatar/breakout", learning={"clip": 0.3}).surrogate.clip == 0.3
    assert notes(recwarn) == ["learning.clip is now surrogate.clip (old names still work)"]


def test_the_last_layer_wins_whatever_name_it_uses(old_file):
    assert build(read_toml(old_file), flags("--trace.gamma", "0.5")).trace.gamma == 0.5
    assert build(flags("--trace.gamma", "0.5"), flags("--learning.gamma", "0.25")).trace.gamma == 0.25


def test_two_names_of_one_setting_in_one_source_are_an_error():
    with pytest.raises(SettingError, match=r"learning\.gamma and trace\.gamma are the same setting; leave one out"):
        build(flags("--learning.gamma", "0.5", "--trace.gamma", "0.25"))


def test_errors_use_the_name_that_was_typed():
    with pytest.raises(SettingError) as caught:
        build(flags("--learning.trace", "gea"))
    assert str(caught.value) == (
        "learning.trace: 'gea' is not one of gae, vtrace, leaky_vtrace, retrace, truncated_is, "
        "recursive_retrace, rbis; did you mean gae?"
    )


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("learning.minibatch", "batch.minibatches"),
        ("learning.proximal_comm", "proximal.center-of-mass"),
        ("learning.gama", "trace.gamma"),
    ],
)
def test_check_name_suggests_the_current_name(name, suggestion):
    with pytest.raises(SettingError, match=rf"no such setting; did you mean {suggestion}\?"):
        check_name(name, name)


def test_allow_accepts_old_names(recwarn):
    before = with_settings(Config(), {"run.mode": "lockstep"})
    after = with_settings(before, {"learning.forced_lag": 2})
    with pytest.raises(CommandError, match=r"batch\.forced-lag cannot change"):
        resume_rules.refuse_changes(before, after, [])
    resume_rules.refuse_changes(before, after, ["learning.forced-lag"])
    assert notes(recwarn) == ["learning.forced-lag is now batch.forced-lag (old names still work)"]


def test_a_changed_precision_is_reported_on_resume():
    (line,) = resume_rules.changed_settings(Config(), with_settings(Config(), {"run.precision": "bf16"}))
    assert line.startswith("warning: run.precision was 'auto' and is 'bf16'")
