"""Lockstep, killed at random moments and resumed, is the run that was never stopped: real processes, real kills."""

import subprocess
import sys

import pytest

from sfactory.tools.verify_resume import verify_resume

SMALL = ["--sampling.envs-per-group", "4", "--sampling.rollout-length", "16", "--batch.epochs", "1"]


def verify(*words, kills=2, steps=9000):
    said = []
    found = verify_resume([*words, *SMALL], steps, kills, seed=5, say=said.append)
    assert sum(line.startswith("B: killed") for line in said) == kills, said
    return found


TWO = ["--batch.minibatches", "2"]


@pytest.mark.parametrize(
    ("target", "words", "steps"),
    [
        ("classic/cartpole", ["--proximal.policy", "ewma", "--batch.forced-lag", "2"], 16_000),
        ("minatar/breakout", [*TWO, "--eval.every", "3000", "--eval.episodes", "5"], 9_000),
        ("minatar/seaquest", [*TWO, "--optim.schedule", "kl_adaptive"], 12_000),
        # The rest of the families that can be saved. Atari: few steps, the network is large.
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("classic/pendulum", [*TWO, "--normalize.advantage-span", "3"], 16_000),
                ("mujoco/hopper", TWO, 12_000),
                ("gymnasium/Ant-v5", TWO, 8_000),
                ("memory/tmaze", [], 16_000),
                ("atari/pong", TWO, 4_000),
            )
        ),
    ],
)
def test_killed_five_times_and_resumed_is_never_stopped(target, words, steps):
    assert verify(target, *words, steps=steps, kills=5) == []


def test_atari_in_lockstep_resumes_exactly():
    """Its vector environment has no snapshot; the group that takes its place has. Few steps: the network is large."""
    assert verify("atari/breakout", *TWO, steps=2000) == []


def test_without_the_environments_the_runs_part():
    """The negative control: what verify-resume would miss if it compared too little."""
    assert verify("minatar/breakout", "--checkpoint.exact", "false", *TWO)


def test_an_environment_that_cannot_be_saved_is_refused_by_name_before_anything_runs(tmp_path):
    command = [sys.executable, "-m", "sfactory", "train", "faults/count", "--run.mode", "lockstep"]
    done = subprocess.run([*command, "--run.dir", tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "faults/count cannot be saved exactly" in done.stderr
    assert "--checkpoint.exact false" in done.stderr
