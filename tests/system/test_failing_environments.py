"""Environments that fail now and then, often or always: what trains, what ends, what a person sees."""

import json
import re
import time

import pytest
from forked_processes import run_forked
from run_helpers import SMALL, command, rows

ENVIRONMENTS = '''
import time
import gymnasium, numpy as np
from gymnasium import spaces


class Base(gymnasium.Env):
    """Episodes of 20 steps with reward 1."""

    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)

    def __init__(self, p=0.0):
        self.p = p

    def unlucky(self):
        return self.np_random.random() < self.p

    def look(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}

    def step(self, action):
        self.t += 1
        return self.look(), 1.0, False, self.t >= 20, {}


class Rare(Base):
    def step(self, action):
        obs, *rest = super().step(action)
        return (obs * np.nan if self.unlucky() else obs), *rest


class Crashy(Base):
    """Action 1 is worth 2 and crashes the simulator now and then."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        if action == 1 and self.unlucky():
            raise RuntimeError("solver diverged")
        return obs, 1.0 + action, *rest


class BadReset(Base):
    def reset(self, **how):
        result = super().reset(**how)
        if self.unlucky():
            raise RuntimeError("no answer from the simulator")
        return result


class SlowPort(Base):
    """Crashes twice in a process; after a close, the next one cannot be built for a second."""

    down, crashes, steps = 0.0, 2, 0

    def __init__(self):
        super().__init__()
        if time.time() - SlowPort.down < 1:
            raise OSError("license still taken")

    def step(self, action):
        SlowPort.steps += 1
        if SlowPort.crashes and SlowPort.steps % 100 == 0:
            SlowPort.crashes -= 1
            raise RuntimeError("simulator crashed")
        return super().step(action)

    def close(self):
        SlowPort.down = time.time()


for cls in (Rare, Crashy, BadReset, SlowPort):
    gymnasium.register(f"{cls.__name__}-v0", cls)
'''
LINE_OF_CRASH = 1 + ENVIRONMENTS[: ENVIRONMENTS.index('raise RuntimeError("solver diverged")')].count("\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the module `sims`, in which the commands run."""
    (tmp_path / "sims.py").write_text(ENVIRONMENTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sfactory(*words):
    return run_forked(command(*words), capture_output=True, text=True, timeout=110)


def train(name, *words, p=None):
    settings = [] if p is None else ["--env.settings.p", p]
    return sfactory("train", f"gymnasium/sims:{name}-v0", "--run.dir", "run", *SMALL, *settings, *words)


def exit_line(done):
    return done.stderr.strip().splitlines()[-1]


def test_run_goes_on_at_a_rate_of_failures_that_does_no_harm(folder):
    """One in fifty steps: a third of the episodes, and more than a thousand failures in all."""
    large = ["--sampling.envs-per-group", "16", "--sampling.rollout-length", "16"]  # few updates
    done = train("Rare", *large, "--stop.env-steps", "60k", p=0.02)
    assert done.returncode == 0, done.stderr[-2000:]
    last = rows("run")[-1]
    assert last["faults/broken_episodes"] > 1000
    assert 0.2 < last["faults/broken_share"] < 0.5
    assert last["charts/episodic_return"] == 20.0
    assert re.search(r"broken \d\d% of episodes", done.stderr)
    assert len(re.findall("warning: .*of the last .* episodes were cut", done.stderr)) == 1
    assert done.stderr.count("NaN or infinity in obs, returned by step, ") < 10, "counted, not repeated"
    assert "environments failed 1,000 times like this: ValueError: NaN or infinity in obs" in done.stderr


def test_run_whose_steps_often_fail_ends_with_the_rate(folder):
    done = train("Rare", p=0.4)
    assert done.returncode == 6
    assert "environments failed more than 1,000 times in" in exit_line(done)
    assert "(env.fault-budget allows 100,000 per million)" in exit_line(done)


@pytest.mark.parametrize(
    "mode", [[], ["--run.mode", "lockstep", "--checkpoint.exact", "false"]], ids=["async", "lockstep"]
)
def test_run_ends_early_if_every_first_step_fails(folder, mode):
    begun = time.monotonic()
    done = train("Rare", *mode, p=1.0)
    assert done.returncode == 6
    found = re.search(
        r"no environment got past its first step, (\d+) failures; the first: environment \d+: ", done.stderr
    )
    assert found, done.stderr
    assert 20 <= int(found[1]) < 500
    assert "ValueError: NaN or infinity in obs, returned by step, " in exit_line(done)
    assert time.monotonic() - begun < 30.0


def test_first_traceback_is_on_the_console_and_the_policy_that_crashes_is_visible(folder):
    done = train("Crashy", "--stop.env-steps", "15k", "--optim.lr", 3e-3, p=0.02)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count(f'sims.py", line {LINE_OF_CRASH}, in step') == 1
    line = next(line for line in done.stderr.splitlines() if "solver diverged (seed" in line)
    assert "log.txt" in line
    assert "environments failed 100 times like this: RuntimeError: solver diverged" in done.stderr
    assert (folder / "run" / "log.txt").read_text().count("Traceback") == 1
    assert rows("run")[-1]["faults/broken_share"] > 0.05
    assert "no return has them, so a policy may gain by breaking the environment" in done.stderr
    done = sfactory("eval", "run", "--greedy", "--episodes", 100)
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(r"\d+ environments failed during the evaluation.*RuntimeError: solver diverged", done.stderr)


def test_quiet_and_json_say_nothing_of_failures(folder):
    done = train("Crashy", "--stop.env-steps", "3k", "--quiet", "--json", p=0.05)
    assert done.returncode == 0
    assert json.loads(done.stdout)["code"] == 0
    assert done.stderr.splitlines() == [exit_line(done)]


def test_environment_that_cannot_be_rebuilt_at_once_costs_a_pause_only(folder):
    """The rebuild was tried once, at once, and took the whole sampler with it."""
    done = train("SlowPort", "--stop.env-steps", "6k")
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows("run")[-1]["faults/broken_episodes"] == 6, "two in each of three samplers"
    assert "restarted" not in done.stderr


@pytest.mark.parametrize(("p", "code"), [(0.03, 0), pytest.param(1.0, 6, marks=pytest.mark.slow)])
def test_failed_first_reset_is_tried_again_unless_it_always_fails(folder, p, code):
    begun = time.monotonic()
    done = train("BadReset", "--stop.env-steps", "3k", p=p)
    assert done.returncode == code, done.stderr[-2000:]
    if code:
        assert time.monotonic() - begun < 30.0
        assert "failed at its first reset: RuntimeError: no answer from the simulator" in exit_line(done)
        assert re.search(r'sims\.py", line \d+, in reset', done.stderr), "where, on the console"
