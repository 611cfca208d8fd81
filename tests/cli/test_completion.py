"""Completion scripts: what bash offers, and what the scripts of all shells contain."""

import os
import shutil
import subprocess

import pytest

from sfactory.cli import completion
from sfactory.cli import main as cli
from sfactory.config.bounds import ENCODER_NAMES
from sfactory.config.parsing import field_types, flag_name

COMPLETE = r"""
source "$SCRIPT"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_sfactory
printf '%s\n' "${COMPREPLY[@]}"
"""
SHELLS = completion.SHELLS
SETTINGS = {f"--{flag_name(name)}" for name in field_types()} - {"--env.settings"}


@pytest.fixture(scope="module")
def scripts():
    return {shell: completion.script(shell, cli.build_parser()) for shell in SHELLS}


@pytest.fixture
def offered(tmp_path, scripts):
    """What bash offers after these words; the last one is being typed. In a folder with the runs a and "my run"."""
    (tmp_path / "script").write_text(scripts["bash"])
    for name in ("a", "my run"):
        (tmp_path / "work" / "runs" / name).mkdir(parents=True)
        (tmp_path / "work" / "runs" / name / "config.toml").touch()
    (tmp_path / "work" / "runs" / "no-run").mkdir()
    (tmp_path / "work" / "my.toml").touch()

    def complete(*words):
        done = subprocess.run(
            ["bash", "-c", COMPLETE, "bash", "sfactory", *words],
            cwd=tmp_path / "work",
            env={**os.environ, "SCRIPT": str(tmp_path / "script")},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split("\n")[:-1] if done.stdout.strip() else []

    return complete


def test_completion_offers_every_command_first(offered):
    assert set(offered("")) == {*cli.COMMANDS}
    assert {"--help", "--version"} <= set(offered("-"))
    assert offered("res") == ["resume"]


def test_completion_offers_presets_and_families_after_train(offered):
    assert offered("train", "minatar/b") == ["minatar/breakout"]
    assert set(offered("train", "minatar/")) >= {"minatar/asterix", "minatar/breakout", "minatar/"}
    assert "runs/a" not in offered("train", "")
    assert offered("train", "--json", "--optim.lr", "1", "minatar/b") == ["minatar/breakout"]
    assert "minatar" in offered("envs", "")
    assert offered("completion", "f") == ["fish"]


@pytest.mark.parametrize("command", ["resume", "eval", "export", "info", "compare", "report", "watch"])
def test_completion_offers_run_folders(offered, command):
    assert offered(command, "") == ["runs/a", "runs/my run"]
    assert offered(command, "runs/m") == ["runs/my run"]


def test_completion_offers_every_setting_to_commands_that_take_settings(offered):
    for command in ("train", "resume", "verify-resume"):
        assert set(offered(command, "--")) >= SETTINGS
    assert not SETTINGS & set(offered("eval", "--"))
    assert offered("train", "--optim.l") == ["--optim.lr", "--optim.lr-min", "--optim.lr-max"]
    assert not [name for name in offered("train", "--env") if name.endswith(".KEY")]


def test_completion_offers_the_choices_of_a_setting_after_a_space_and_an_equals_sign(offered):
    traces = ["gae", "vtrace", "leaky_vtrace", "retrace", "truncated_is", "recursive_retrace", "rbis"]
    assert offered("train", "minatar/breakout", "--trace.estimator", "") == traces
    assert offered("train", "minatar/breakout", "--trace.estimator", "v") == ["vtrace"]
    assert offered("train", "--trace.estimator", "=", "v") == ["vtrace"]  # bash splits the word there
    assert offered("train", "--trace.estimator", "=") == traces
    assert offered("train", "--model.encoder", "") == list(ENCODER_NAMES)
    assert offered("train", "--optim.lr", "") == []


@pytest.mark.parametrize("words", [["my_file:MyEnv"], ["my_file", ":", "MyEnv"], ["sub/my_file.py", ":", "MyEnv"]])
def test_completion_goes_on_after_a_target_with_a_colon(offered, words):
    """bash splits words at a colon."""
    assert offered("train", *words, "--trace.est") == ["--trace.estimator"]
    assert offered("train", *words, "--trace.estimator", "v") == ["vtrace"]


def test_completion_offers_files_and_folders(offered):
    assert offered("train", "--config", "my") == ["my.toml"]
    assert offered("train", "--run.dir", "r") == ["runs"]
    assert offered("train", "--run.init-from", "runs/m") == ["runs/my run"]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_completion_offers_every_option_of_a_command(offered, command):
    parser = completion.command_parsers(cli.build_parser())[command]
    assert {*parser.current_options()} <= set(offered(command, "-"))


@pytest.mark.parametrize("shell", [name for name in SHELLS if shutil.which(name)])
def test_completion_script_has_valid_syntax(tmp_path, scripts, shell):
    (tmp_path / "script").write_text(scripts[shell])
    done = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts_of_all_shells_contain_commands_settings_choices_and_presets(scripts, shell):
    text = scripts[shell]
    words = [
        *cli.COMMANDS,
        *SETTINGS,
        "gae vtrace leaky_vtrace retrace truncated_is recursive_retrace rbis",
        " ".join(ENCODER_NAMES),
        "minatar/breakout",
        "runs/",
    ]
    missing = [word for word in words if (word if shell != "fish" else word.removeprefix("--")) not in text]
    assert missing == []


def test_completion_command_prints_the_script_and_refuses_unknown_shells(typed, scripts):
    code, out, line = typed("completion", "bash")
    assert (code, line) == (0, "")
    assert out == scripts["bash"]
    code, out, line = typed("completion", "fsh")
    assert (code, out) == (2, "")
    assert "there are scripts for bash, zsh, fish; did you mean fish?" in line
