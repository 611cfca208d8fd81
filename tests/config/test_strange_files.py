"""A config.toml of unknown origin: types and sizes are checked before any number is used."""

import pytest

from sfactory.config import parsing, values
from sfactory.config.toml_file import from_toml
from sfactory.errors import SettingError

WRONG = {
    "[run]\nmode = '<script>'": "run.mode",
    "[run]\nseed = 'one'": "run.seed",
    "[run]\nseed = 9223372036854775808": "run.seed",
    "[run]\nseed = 1979-05-27": "run.seed",
    "[run]\nseed = inf": "run.seed",
    "[run]\ndir = [1]": "run.dir",
    "[model]\nhidden = {a = 1}": "model.hidden",
    "[model]\nhidden = [1.5]": "model.hidden",
    "[optim]\nlr = '1e999999999'": "optim.lr",
    "[stop]\nenv_steps = '1e999999999'": "stop.env-steps",
    "[stop]\nenv_steps = '1e999999k'": "stop.env-steps",
    f"[stop]\nenv_steps = 0x{'f' * 20_000}": "stop.env-steps",
    f"[optim]\nlr = 0x{'f' * 20_000}": "optim.lr",
    f"[stop]\nenv_steps = {'9' * 5000}": "not valid TOML",
    f"a = {'[' * 2000}": "too deeply",
    "a = 1": "settings belong in sections",
    "[env]\nsettings = 3": "env.settings",
    "[env]\nsettings = {a = 1979-05-27}": "env.settings.a",
    f"[env]\nsettings = {{a = {'[' * 70}{']' * 70}}}": "env.settings.a",
    "[sampling]\nenvs_per_group = 1000000000000000": "envs-per-group",
    "[sampling]\nnum_samplers = 100000000\ngroups_per_sampler = 100000000": "num-samplers",
    "[batch]\nslots = 9000000000000000000": "batch.slots",
}


@pytest.mark.parametrize("text", WRONG)
def test_from_toml_refuses_wrong_types_and_sizes_in_one_short_line(tmp_path, text):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(SettingError) as error:
        from_toml(tmp_path / "config.toml")
    line = str(error.value)
    assert line.startswith(str(tmp_path)) or "envs-per-group" in line
    assert WRONG[text] in line
    assert "\n" not in line
    assert len(line) < 600


def test_from_toml_refuses_a_file_that_is_no_settings(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"# \xff")
    with pytest.raises(SettingError, match="not a text file"):
        from_toml(tmp_path / "config.toml")
    with (tmp_path / "config.toml").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="at most"):
        from_toml(tmp_path / "config.toml")


@pytest.mark.parametrize("text", ["1e999990k", "1e999999999M", "9" * 5000, "1" * 5000 + "k"])
def test_from_text_leaves_numbers_that_would_fill_the_memory_as_text(text):
    assert values.from_text(text) == text
    assert values.as_text(text) == text


def test_shown_cuts_a_value_that_is_longer_than_a_line():
    assert parsing.shown("x" * 1000) == "'" + "x" * 79 + "..."
    assert parsing.shown([1]) == "[1]"
