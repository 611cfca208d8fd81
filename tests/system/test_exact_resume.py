"""Lockstep, killed at random moments and resumed, is the run that was never stopped: real processes, real kills."""

import subprocess
import sys

import pytest

from sfactory.verify_resume import verify_resume

pytestmark = pytest.mark.faults
SMALL = ["--sampling.envs-per-group", "4", "--sampling.rollout-length", "16", "--learning.epochs", "1"]


def verify(*words, kills=2, steps=9000):
    said = []
    found = verify_resume([*words, *SMALL], steps, kills, seed=5, say=said.append)
    assert sum(line.startswith("B: killed") for line in said) == kills, said
    return found


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("classic/cartpole", ["--learning.proximal", "ewma", "--learning.forced-lag", "2"]),
        ("minatar/breakout", ["--learning.minibatches", "2", "--eval.every", "2000", "--eval.episodes", "5"]),
        ("minatar/seaquest", ["--learning.minibatches", "2", "--optim.schedule", "kl_adaptive"]),
        pytest.param(
            "classic/pendulum",
            ["--learning.minibatches", "2", "--normalize.advantage-span", "3"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_and_resumed_is_never_stopped(target, words):
    assert verify(target, *words) == []


def test_atari_in_lockstep_resumes_exactly():
    """Its vector environment has no snapshot; the group that takes its place has. Few steps: the network is large."""
    assert verify("atari/breakout", "--learning.minibatches", "2", steps=2000) == []


def test_without_the_environments_the_runs_part():
    """The negative control: what verify-resume would miss if it compared too little."""
    assert verify("minatar/breakout", "--checkpoint.exact", "false", "--learning.minibatches", "2")


def test_an_environment_that_cannot_be_saved_is_refused_by_name_before_anything_runs(tmp_path):
    command = [sys.executable, "-m", "sfactory", "train", "faults/count", "--run.mode", "lockstep"]
    done = subprocess.run([*command, "--run.dir", tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "faults/count cannot be saved exactly" in done.stderr
    assert "--checkpoint.exact false" in done.stderr
