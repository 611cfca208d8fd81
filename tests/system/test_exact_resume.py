"""A lockstep run that is killed at random moments and resumed equals an uninterrupted run bit for bit."""

import os
import re
import subprocess
import sys

import pytest
from forked_processes import COPIES, run_forked

from sfactory.tools.verify_resume import verify_resume

SMALL = ["--sampling.envs-per-group", "4", "--sampling.rollout-length", "16", "--batch.epochs", "1"]


def verify(*words, kills=2, steps=9000):
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfactory.tools.verify_resume.subprocess", COPIES)
        found = verify_resume([*words, *SMALL], steps, kills, seed=5, log=lines.append)
    assert sum(line.startswith("B: killed") for line in lines) == kills, lines
    return found


TWO = ["--batch.minibatches", "2"]
STEPS = ["--optim.sfpo-steps", "2", "--optim.sfpo-window", "8", "--optim.adam-rel", "true", "--optim.schedule"]
STEPS += ["staleness", "--batch.forced-lag", "2", "--trace.baseline", "optimal"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("target", "words", "steps"),
    [
        ("classic/cartpole", ["--proximal.policy", "ewma", "--batch.forced-lag", "2"], 16_000),
        (
            "minatar/breakout",
            [*TWO, "--optim.schedule", "kl_adaptive", "--eval.every", "3000", "--eval.episodes", "5"],
            9_000,
        ),
        # The rest of the families that can be saved. Atari: few steps, the network is large.
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("minatar/seaquest", TWO, 12_000),
                ("classic/pendulum", [*TWO, "--normalize.advantage-span", "3"], 16_000),
                ("mujoco/hopper", TWO, 12_000),
                ("gymnasium/Ant-v5", TWO, 8_000),
                ("memory/tmaze", [], 16_000),
                ("classic/cartpole", [*TWO, *STEPS], 12_000),
                ("atari/pong", TWO, 4_000),
            )
        ),
    ],
)
def test_lockstep_run_killed_five_times_equals_an_uninterrupted_run(target, words, steps):
    assert verify(target, *words, steps=steps, kills=5) == []


@pytest.mark.parametrize(
    ("target", "words", "steps"),
    [
        ("classic/cartpole", ["--batch.forced-lag", "1", "--normalize.reward", "true"], 14_000),
        pytest.param("minatar/breakout", TWO, 9_000, marks=pytest.mark.slow),
        pytest.param("memory/tmaze", [], 14_000, marks=pytest.mark.slow),  # with a recurrent state
    ],
)
def test_lockstep_run_with_replay_killed_and_resumed_equals_an_uninterrupted_run(target, words, steps):
    replay = ["--replay.ratio", "1.5", "--replay.max-age", "3", "--batch.minibatches", "1"]
    assert verify(target, *words, *replay, steps=steps, kills=3) == []


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        pytest.param("pqn", ["--pqn.epsilon-fraction", "1", "--batch.forced-lag", "2"], marks=pytest.mark.slow),
        pytest.param(
            "ppg",
            ["--ppg.policy-updates", "5", "--ppg.phase-epochs", "2", "--proximal.policy", "ewma"],
            marks=pytest.mark.slow,
        ),
        ("dae", ["--batch.forced-lag", "2", "--proximal.policy", "ewma", "--normalize.value-targets", "true"]),
    ],
)
def test_lockstep_run_of_another_algorithm_resumes_exactly(algorithm, words):
    assert verify("classic/cartpole", "--algorithm.name", algorithm, *TWO, *words, steps=6000, kills=3) == []


def test_lockstep_run_with_bins_of_the_value_resumes_exactly():
    words = ["--batch.forced-lag", "1", "--model.value-head", "hl_gauss", "--normalize.value-targets", "true"]
    assert verify("classic/cartpole", *TWO, *words, steps=3000, kills=1) == []


@pytest.mark.slow
@pytest.mark.timeout(400)  # a minute alone on two slow cores; the other process of the suite doubles it
def test_atari_lockstep_run_resumes_exactly():
    """The vector environment has no snapshots; the group that replaces it has.

    Few steps: the network is large.
    """
    assert verify("atari/breakout", *TWO, steps=2000) == []


@pytest.mark.slow
def test_verify_resume_detects_missing_environment_snapshots():
    """Negative control: verify-resume must fail if environments are not saved."""
    assert verify("minatar/breakout", "--checkpoint.exact", "false", *TWO)


def test_verify_resume_refuses_environments_without_snapshots(tmp_path):
    command = [sys.executable, "-m", "sfactory", "train", "faults/count", "--run.mode", "lockstep"]
    done = run_forked([*command, "--run.dir", tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "faults/count cannot be saved exactly" in done.stderr
    assert "--checkpoint.exact false, in Python checkpoint={'exact': False}" in done.stderr


def resumed_log(folder, first, *words):
    """Log of a lockstep run that is trained with the environment variables `first`, then resumed with these words."""
    run = folder / "run"
    small = [*SMALL, *TWO, "--run.mode", "lockstep", "--run.dir", str(run), "--quiet"]
    sfactory = [sys.executable, "-m", "sfactory"]
    train = [*sfactory, "train", "classic/cartpole", *small, "--stop.env-steps", "1000"]
    assert run_forked([*train, *first], capture_output=True).returncode == 0
    environment = {**os.environ, "CC": "none"} if "no compiler" in words else None
    resume = [*sfactory, "resume", str(run), "--stop.env-steps", "2000", *(w for w in words if w != "no compiler")]
    start = run_forked if environment is None else subprocess.run  # a copy has the kernels loaded
    done = start(resume, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (run / "log.txt").read_text()


def test_lockstep_resume_keeps_the_kernels_of_the_checkpoint(tmp_path):
    log = resumed_log(tmp_path, ["--run.kernels", "torch"], "--run.kernels", "auto")
    assert log.count("kernels: torch (run.kernels is torch)") == 2
    assert "not bit for bit" not in log


def test_lockstep_resume_says_that_other_kernels_are_not_bit_for_bit(tmp_path):
    log = resumed_log(tmp_path, [], "no compiler")
    assert "learner: kernels: torch (the compiler of the environment variable CC (none) was not found)" in log
    assert re.search(r"kernels: torch, but native \w{12} before: this resume is not bit for bit", log)
