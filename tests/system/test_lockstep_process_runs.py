"""Lockstep runs whose environments hang, exit, crash or change their process; signals; kills."""

import json
import os
import re
import signal
import subprocess

import pytest
from forked_processes import ForkedCommand, run_forked
from run_helpers import all_exited, children, command, finish, rows, wait_for, workers_named

ENVIRONMENTS = """
import ctypes, os, signal, sys
import gymnasium, numpy as np
from gymnasium import spaces

def ignore_everything():
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)

DEEDS = {
    "hangs": lambda: ctypes.PyDLL(None).pause(),  # and keeps the interpreter lock
    "exits": lambda: sys.exit(0),
    "ends": lambda: os._exit(0),
    "fails": lambda: os._exit(3),
    "interrupts": lambda: (_ for _ in ()).throw(KeyboardInterrupt),
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "is killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "ignores": ignore_everything,
    "prints": lambda: os.write(1, b"the environment speaks"),
}

class Odd(gymnasium.Env):
    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)
    steps = resets = 0

    def __init__(self, deed, when):
        self.deed, self.when = deed, when
        self.do("init")

    def do(self, when):
        if when == self.when and "specs/" not in os.environ["SFACTORY_WORKER"] and self.trains():
            DEEDS[self.deed]()

    def trains(self):
        \"\"\"Not in the process that reads the spaces.\"\"\"
        return "lockstep" in os.environ["SFACTORY_WORKER"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.resets += 1
        self.t = 0
        if self.resets == 20:
            self.do("reset")
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.t += 1
        if self.steps == 100:
            self.do("step")
        return np.zeros(3, np.float32), 1.0, False, self.t >= 5, {}

    def close(self):
        self.do("close")

gymnasium.register("Odd-v0", Odd)
"""
SMALL = [
    "--run.mode", "lockstep", "--checkpoint.exact", "false", "--run.dir", "run", "--model.hidden", "8", "--quiet",
    "--sampling.num-samplers", "2", "--sampling.groups-per-sampler", "1", "--sampling.envs-per-group", "2",
    "--sampling.rollout-length", "8", "--batch.minibatches", "1", "--batch.epochs", "1",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the module `odd`, in which the commands run."""
    (tmp_path / "odd.py").write_text(ENVIRONMENTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def odd(deed, when, *words):
    """The command that trains in an environment that does something odd."""
    settings = ["--env.settings.deed", deed, "--env.settings.when", when, "--stop.env-steps", 1000]
    return command("train", "gymnasium/odd:Odd-v0", *SMALL, *settings, *words)


def done(arguments):
    return run_forked(arguments, capture_output=True, text=True, timeout=100)


def exit_line(err):
    return err.strip().splitlines()[-1]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("deed", "when", "sentence"),
    [
        (
            "exits",
            "step",
            r"lockstep exited \(exit code 1, in environment 0, seed \d+, step \d of the episode\): SystemExit: 0",
        ),
        pytest.param("ends", "step", r"lockstep exited \(exit code 0, in environment 0", marks=pytest.mark.slow),
        ("fails", "reset", r"lockstep exited \(exit code 3, in environment 0"),
        pytest.param(
            "interrupts",
            "step",
            r"lockstep exited \(exit code 1, in environment 0.*: KeyboardInterrupt",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "crashes", "init", r"lockstep exited \(killed by SIGSEGV, building environment 0\)", marks=pytest.mark.slow
        ),
        ("hangs", "step", r"environment step exceeded 1 s \(env.step-timeout, in environment 0, seed \d+, step \d"),
        pytest.param(
            "hangs",
            "reset",
            r"environment step exceeded 1 s \(env.step-timeout, in environment 0, seed \d+, step \d",
            marks=pytest.mark.slow,
        ),
        ("hangs", "init", r"building an environment exceeded 1 s \(env.build-timeout, building environment 0\)"),
    ],
)
def test_lockstep_run_whose_environment_ends_or_blocks_its_process_ends_as_an_environment_fault(
    folder, deed, when, sentence
):
    ended = done(odd(deed, when, "--env.step-timeout", 1, "--env.build-timeout", 1))
    assert ended.returncode == 6, ended.stderr[-3000:]
    assert exit_line(ended.stderr).startswith("sfactory: environment fault (exit 6): ")
    assert re.search(sentence, exit_line(ended.stderr))
    assert json.loads((folder / "run/status.json").read_text())["exit"] == 6
    if when != "init":
        assert "resume: sfactory resume run" in exit_line(ended.stderr)
    if deed == "hangs":
        assert 'odd.py", line' in (folder / "run/debug/lockstep.txt").read_text(), "the stack"


def test_lockstep_run_whose_environment_never_closes_finishes(folder):
    ended = done(odd("hangs", "close"))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert exit_line(ended.stderr).startswith("sfactory: finished (exit 0): stop.env-steps 1,000 was reached (")
    assert rows("run")[-1]["env_steps"] >= 1000


@pytest.mark.parametrize("deed", ["ignores", "prints"])
def test_lockstep_run_is_not_touched_by_what_an_environment_does_to_its_process(folder, deed):
    """The working directory, handlers of signals and standard output are those of the child."""
    ended = done(odd(deed, "init", "--json", "--eval.every", 500, "--eval.episodes", 2))
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout)["code"] == 0
    assert len(ended.stderr.splitlines()) == 1
    assert rows("run")[-1]["eval/episodic_return"] == 5.0
    if deed == "prints":
        assert (folder / "run/debug/lockstep.txt").read_text().count("the environment speaks") >= 4


@pytest.mark.parametrize(
    ("deed", "sentence"),
    [
        ("fails", r"lockstep exited \(exit code 3, in an evaluation\)"),
        ("hangs", r"environment step exceeded 1 s \(env.step-timeout, in an evaluation\)"),
    ],
)
def test_lockstep_run_ends_if_an_environment_of_an_evaluation_blocks_or_ends_it(folder, deed, sentence):
    """Its second episode of 50 ends after 100 steps; training environments do nothing odd so early."""
    words = ["--eval.every", 16, "--eval.episodes", 50, "--eval.num-envs", 1, "--env.step-timeout", 1]
    ended = done(odd(deed, "step", *words))
    assert ended.returncode == 6, ended.stderr[-3000:]
    assert re.search(sentence, exit_line(ended.stderr))


@pytest.fixture
def start(folder):
    """Start a command and wait until it has trained for a moment; return it and its child."""
    processes = []

    def start(arguments):
        before = len(rows("run"))
        process = ForkedCommand(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        processes.append(process)
        wait_for(lambda: len(rows("run")) > before + 2, process=process)
        (child,) = workers_named(process, "lockstep")
        return process, child

    yield start
    for process in processes:
        process.kill()
        process.communicate()


ENDLESS = ["--log.every-updates", 1, "--checkpoint.every-seconds", 1e9, "--stop.env-steps", 10**9]


def saved():
    """Trained steps of the newest checkpoint."""
    return max(int(name) for name in os.listdir("run/checkpoints") if name.isdigit())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_signal_ends_a_lockstep_run_with_a_checkpoint_of_the_last_step(start, number, code):
    process, _ = start(odd("prints", "never", *ENDLESS, "--run.requeue"))
    everything = children(process)
    process.send_signal(number)
    _, err = finish(process, code)
    steps = int(re.search(r"at ([\d,]+) steps", exit_line(err))[1].replace(",", ""))
    assert steps == saved() >= rows("run")[-1]["env_steps"] > 0
    wait_for(lambda: all_exited(everything))


def test_lockstep_run_saves_on_sigusr1_and_goes_on_until_ctrl_c(start):
    process, _ = start(odd("prints", "never", *ENDLESS))
    assert saved() == 0
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: saved() > 0, process=process)
    first, before = saved(), len(rows("run"))
    wait_for(lambda: len(rows("run")) > before, process=process)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    assert saved() > first


def test_lockstep_run_is_resumed_after_a_kill_of_its_process_and_gone_after_a_kill_of_its_parent(start):
    process, child = start(odd("prints", "never", *ENDLESS))
    child.kill()
    _, err = finish(process, 7)
    assert "worker lost (exit 7): lockstep was killed by SIGKILL; last checkpoint run/checkpoints/" in exit_line(err)
    process, _ = start(command("resume", "run", "--quiet", "--log.every-updates", 1))
    everything = children(process)
    process.kill()
    wait_for(lambda: all_exited(everything))
