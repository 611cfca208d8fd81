"""Run folders written by commit ba74152, before settings and folders were renamed, still work with every command."""

import json
import shutil
from pathlib import Path

import pytest
from forked_processes import run_forked
from run_helpers import command as words_of

GOLDEN = Path(__file__).parent.parent / "golden" / "run_folders"
STEPS = {"lockstep": 1592, "async": 3114}


def command(*words):
    """Run one command to its end."""
    return run_forked(words_of(*words), capture_output=True, text=True, timeout=90, check=False)


@pytest.fixture(params=sorted(STEPS))
def old_run(request, tmp_path):
    """A copy of a run folder of CartPole: config.toml has a section `learning`, which is several sections today."""
    return shutil.copytree(GOLDEN / request.param, tmp_path / request.param)


def test_old_run_folder_resumes_without_a_change_of_settings(old_run):
    done = command("resume", old_run, "--stop.env-steps", "5000", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "->" not in done.stderr, "no setting but stop.env-steps has changed"
    status = json.loads((old_run / "status.json").read_text())
    assert status["state"] == "finished"
    assert status["env_steps"] >= 5000
    steps = [json.loads(line)["env_steps"] for line in (old_run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "one curve, strictly increasing"
    assert STEPS[old_run.name] in steps, "rows of the old run are kept"


def test_old_lockstep_run_folder_restores_its_environments(tmp_path):
    run = shutil.copytree(GOLDEN / "lockstep", tmp_path / "lockstep")
    assert command("resume", run, "--stop.env-steps", "3000", "--quiet").returncode == 0
    assert "not exact" not in (run / "log.txt").read_text(), "memory and environments are in the checkpoint"


def test_old_run_folder_is_evaluated_described_reported_and_compared(old_run, tmp_path):
    played = command("eval", old_run, "--episodes", "4", "--json")
    assert played.returncode == 0, played.stderr
    assert json.loads(played.stdout)["episodes"] == 4
    described = command("info", old_run, "--json")
    assert described.returncode == 0, described.stderr
    assert command("report", old_run, "-o", tmp_path / "page.html").returncode == 0
    assert "gymnasium/CartPole-v1" in (tmp_path / "page.html").read_text()
    other = GOLDEN / ("async" if old_run.name == "lockstep" else "lockstep")
    compared = command("compare", old_run, shutil.copytree(other, tmp_path / "other"), "--json")
    assert compared.returncode == 0, compared.stderr
    assert json.loads(compared.stdout)["panels"]


def test_recorded_option_without_effect_is_a_note_in_eval_and_resume(old_run):
    settings = (old_run / "config.toml").read_text()
    (old_run / "config.toml").write_text(settings.replace("kl_target = 0.01", "kl_target = 0.02"))
    note = "optim.kl-target 0.02 has no effect without optim.schedule kl_adaptive; read as 0.01"
    for words in (("eval", old_run, "--episodes", "2"), ("resume", old_run, "--stop.env-steps", "5000", "--quiet")):
        done = command(*words)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count(note) == 1, done.stderr
        assert "->" not in done.stderr
