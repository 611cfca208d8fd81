"""Signals to the supervisor: which end the run with what outcome, and which request a checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from forked_processes import ForkedCommand, run_forked

from sfactory.errors import Exit
from sfactory.supervisor import signals as module
from sfactory.supervisor.signals import Signals, requeue_job
from sfactory.workers.shared import LearnerOutcome


def after(*numbers, requeue=False):
    """The Signals object of a process that received these signals."""
    with Signals(requeue) as signals:
        for number in numbers:
            os.kill(os.getpid(), number)
    return signals


@pytest.mark.parametrize(
    ("numbers", "word", "code", "count"),
    [
        ((signal.SIGINT,), "interrupted", 130, 1),
        ((signal.SIGINT, signal.SIGINT), "interrupted", 130, 2),
        ((signal.SIGTERM,), "terminated", 143, 1),
        ((signal.SIGHUP,), "terminated", 143, 1),
        ((signal.SIGINT, signal.SIGTERM), "interrupted", 130, 2),  # the first one decides
    ],
)
def test_signals_that_end_the_run(numbers, word, code, count):
    signals = after(*numbers)
    outcome = signals.outcome()
    assert (outcome.name, outcome.code, signals.stop_count) == (word, code, count)


def test_sigusr1_requests_a_checkpoint_and_ends_the_run_only_with_requeue():
    signals = after(signal.SIGUSR1, signal.SIGUSR1)
    assert (signals.outcome(), signals.stop_count, signals.save_count) == (None, 0, 2)
    shared = SimpleNamespace(supervisor=SimpleNamespace(save_requests=0))
    signals.forward(shared)
    assert shared.supervisor.save_requests == 2
    outcome = after(signal.SIGUSR1, requeue=True).outcome()
    assert (outcome.name, outcome.code) == ("requeue", 75)


def test_signals_restores_the_previous_handlers():
    before = signal.getsignal(signal.SIGTERM)
    after(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_requeue_job_reports_its_result(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert requeue_job() == "no SLURM job to requeue; the exit code is 75"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert requeue_job().startswith("scontrol requeue 17 failed: ")


EARLY = """
import os, signal, sys
from sfactory.config import Config, Env, Model, Run
from sfactory.run.recorder import RunRecorder
from sfactory.supervisor import train

open_folder = RunRecorder.open

def open_and_be_terminated(*arguments):
    recorder = open_folder(*arguments)
    os.kill(os.getpid(), int(sys.argv[3]))
    return recorder

if __name__ == "__main__":
    RunRecorder.open = open_and_be_terminated
    config = Config(env=Env("gymnasium/CartPole-v1"), model=Model(hidden=(8,)), run=Run(mode=sys.argv[1], device="cpu"))
    sys.exit(train.train(config, sys.argv[2]).code)
"""


def status(folder):
    found = json.loads((folder / "run" / "status.json").read_text())
    return found["state"], found["exit"], found["sentence"]


@pytest.mark.parametrize(
    ("mode", "number", "state", "code"),
    [
        ("lockstep", signal.SIGTERM, "terminated", Exit.TERMINATED),
        ("async", signal.SIGTERM, "terminated", Exit.TERMINATED),
        ("lockstep", signal.SIGINT, "interrupted", Exit.INTERRUPTED),
    ],
)
def test_signal_right_after_the_folder_is_opened_ends_the_run_in_order(tmp_path, mode, number, state, code):
    (tmp_path / "early.py").write_text(EARLY)
    command = [sys.executable, str(tmp_path / "early.py"), mode, str(tmp_path / "run"), str(int(number))]
    done = run_forked(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr[-2000:]
    assert status(tmp_path) == (state, code, "stopped by signal")


HANGING = """
import sys, time
from pathlib import Path
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv
from sfactory.config import Checkpoint, Config, Env, Model, Run
from sfactory.supervisor import train

class Hanging(CartPoleEnv):
    def step(self, action):
        Path("hangs").touch()
        time.sleep(1000)

gymnasium.register("Hanging-v0", Hanging)

if __name__ == "__main__":
    config = Config(
        env=Env("gymnasium/Hanging-v0"), model=Model(hidden=(8,)), run=Run(mode="lockstep", device="cpu"),
        checkpoint=Checkpoint(exact=False),
    )
    sys.exit(train.train(config, "run").code)
"""


def test_second_signal_ends_a_lockstep_run_whose_environment_hangs(tmp_path):
    (tmp_path / "hanging.py").write_text(HANGING)
    process = ForkedCommand([sys.executable, "hanging.py"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "hangs").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)
        assert process.poll() is None, "the first signal waits for the end of the turn"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == Exit.INTERRUPTED, err[-2000:]
    sentence = "stopped by signal; stopped by a second signal without waiting for a checkpoint"
    assert status(tmp_path) == ("interrupted", Exit.INTERRUPTED, sentence)


def test_signal_to_one_of_several_ranks_is_proposed_to_all_learners_and_ends_this_one_after_a_while(monkeypatch):
    with Signals(alone=False) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.outcome() is None
    shared = SimpleNamespace(supervisor=SimpleNamespace(save_requests=0, proposal=LearnerOutcome.RUNNING))
    signals.forward(shared)
    assert shared.supervisor.proposal == LearnerOutcome.TERMINATED
    monkeypatch.setattr(module, "AGREE_S", 0.0)
    outcome = signals.outcome()
    assert (outcome.code, outcome.sentence) == (
        143,
        "stopped by signal; the other learners of the job were not waited for",
    )


def test_second_signal_to_one_of_several_ranks_ends_it_at_once():
    with Signals(alone=False) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signals.outcome().code == 130


def test_signal_to_a_single_learner_is_not_proposed():
    shared = SimpleNamespace(supervisor=SimpleNamespace(save_requests=0, proposal=LearnerOutcome.RUNNING))
    after(signal.SIGTERM).forward(shared)
    assert shared.supervisor.proposal == LearnerOutcome.RUNNING
