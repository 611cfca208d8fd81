"""Completion scripts, asked in real shells."""

import os
import shutil
import subprocess

import pytest

from sfactory.cli import main as cli
from sfactory.cli.completion_scripts import SHELLS, script, tables
from sfactory.config.bounds import ENCODERS
from sfactory.config.parsing import field_types, flag_name

HELP = {verb: text for verb, (text, _) in cli.VERBS.items()}
ASK = r"""
source "$SCRIPT"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_sfactory
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def ask(tmp_path):
    """What bash offers after these words; the last one is what is being typed. With runs a and "my run"."""
    (tmp_path / "script").write_text(script("bash", HELP))
    for name in ("a", "my run"):
        (tmp_path / "work" / "runs" / name).mkdir(parents=True)
        (tmp_path / "work" / "runs" / name / "config.toml").touch()
    (tmp_path / "work" / "runs" / "no-run").mkdir()
    (tmp_path / "work" / "my.toml").touch()

    def ask_(*words):
        done = subprocess.run(
            ["bash", "-c", ASK, "bash", "sfactory", *words],
            cwd=tmp_path / "work",
            env={**os.environ, "SCRIPT": str(tmp_path / "script")},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []

    return ask_


def test_every_verb_is_offered_first(ask):
    assert set(ask("")) == {*cli.VERBS, "--help", "--version"}
    assert ask("res") == ["resume"]


def test_presets_and_families_stand_behind_train(ask):
    assert ask("train", "minatar/b") == ["minatar/breakout"]
    assert set(ask("train", "minatar/")) >= {"minatar/asterix", "minatar/breakout", "minatar/"}
    assert "runs/a" not in ask("train", "")


@pytest.mark.parametrize("verb", ["resume", "eval", "export", "info"])
def test_runs_that_are_there_stand_behind_what_takes_a_run(ask, verb):
    assert [x for x in ask(verb, "") if x.startswith("runs/")] == ["runs/a", "runs/my run"]
    assert ask(verb, "runs/m") == ["runs/my run"]


def test_every_setting_is_offered_where_settings_are_taken(ask):
    all_of_them = {f"--{flag_name(name)}" for name in field_types()} - {"--env.settings"}
    for verb in ("train", "resume", "verify-resume"):
        assert all_of_them <= set(ask(verb, "--"))
    assert not all_of_them & set(ask("eval", "--"))
    assert ask("train", "--optim.l") == ["--optim.lr"]


def test_choices_stand_behind_their_setting_with_a_space_and_with_an_equals_sign(ask):
    assert ask("train", "minatar/breakout", "--trace.estimator", "") == ["gae", "vtrace", "leaky_vtrace", "rbis"]
    assert ask("train", "minatar/breakout", "--trace.estimator", "v") == ["vtrace"]
    assert ask("train", "--trace.estimator", "=", "v") == ["vtrace"]  # readline splits words there
    assert ask("train", "--trace.estimator", "=") == ["gae", "vtrace", "leaky_vtrace", "rbis"]
    assert ask("train", "--model.encoder", "") == list(ENCODERS)
    assert ask("train", "--optim.lr", "") == []


def test_files_and_folders_stand_behind_what_names_them(ask):
    assert ask("train", "--config", "my") == ["my.toml"]
    assert ask("train", "--run.dir", "r") == ["runs"]


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_option_of_a_verbs_help_is_offered(ask, verb):
    named = {
        word.strip("[](),`").partition("=")[0]
        for line in HELP[verb].splitlines()
        if line.startswith("  --")
        for word in line.split()[:1]
    }
    assert {name for name in named if name != "--env.settings.KEY"} <= set(ask(verb, "-"))
    assert "--help" in ask(verb, "-")


@pytest.mark.parametrize("shell", [name for name in SHELLS if shutil.which(name)])
def test_the_shell_itself_can_read_its_script(tmp_path, shell):
    (tmp_path / "script").write_text(script(shell, HELP))
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_holds_the_same_tables(shell):
    text, found = script(shell, HELP), tables(HELP)
    for verb in found.verbs:
        assert verb.name in text
        for word in verb.words:
            assert word in text
        for option in verb.options:
            assert (option if shell != "fish" else option.lstrip("-")) in text
    for values in found.choices.values():
        assert " ".join(values) in text


def test_the_command_prints_it_and_knows_no_other_shell(typed):
    code, out, line = typed("completion", "bash")
    assert (code, line) == (0, "")
    assert out == script("bash", HELP)
    code, out, line = typed("completion", "fsh")
    assert (code, out) == (2, "")
    assert "there are scripts for bash, zsh, fish; did you mean fish?" in line
