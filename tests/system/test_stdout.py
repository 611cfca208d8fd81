"""Stdout is for results: environments print to stderr, in Python, in C and from processes they start."""

import json
import os
import subprocess
import sys

import pytest

LOUD = """
import atexit, ctypes, os, subprocess
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

def speak(where):
    print("python in", where)
    os.write(1, f"descriptor in {where}\\n".encode())
    ctypes.CDLL(None).printf(f"C in {where}\\n".encode())

speak("import")
atexit.register(speak, "exit")

class Loud(CartPoleEnv):
    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        speak("constructor")
        subprocess.run(["echo", "child in constructor"])
    def step(self, action):
        speak("step")
        return super().step(action)
    def __del__(self):
        speak("del")

gymnasium.register("Loud-v0", Loud, max_episode_steps=50)
"""
SMALL = ["--sampling.num-samplers", "1", "--sampling.envs-per-group", "2", "--sampling.rollout-length", "8"]
SMALL += ["--batch.minibatches", "1", "--batch.epochs", "1", "--stop.env-steps", "200", "--run.device", "cpu"]
LOCKSTEP = ["--run.mode", "lockstep", "--checkpoint.exact", "false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loud")
    (folder / "loud.py").write_text(LOUD)
    return folder


def run(folder, *words):
    """Run a command in the folder; (parsed stdout, stderr)."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # also of the C library
    words = [sys.executable, "-m", "sfactory", *words]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=100, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mode", [[], LOCKSTEP], ids=["async", "lockstep"])
def test_train_and_eval_write_json_only_on_stdout(folder, mode):
    name = f"run{len(mode)}"
    outcome, err = run(folder, "train", "gymnasium/loud:Loud-v0", "--run.dir", name, "--quiet", "--json", *SMALL, *mode)
    assert outcome["code"] == 0
    speakers = ("python", "descriptor", "C", "child")
    assert all(f"{speaker} in constructor" in err for speaker in speakers)
    result, err = run(folder, "eval", name, "--episodes", "2", "--json")
    assert len(result["returns"]) == 2
    assert all(f"{speaker} in constructor" in err for speaker in speakers)
    assert all(f"{speaker} in step" in err for speaker in speakers[:3])
    assert "in exit" not in err, "exit handlers of an environment, which may hang, do not run"


def test_check_env_writes_json_only_on_stdout(folder):
    report, err = run(folder, "check-env", "gymnasium/loud:Loud-v0", "--seconds", "0.5", "--json")
    assert report["findings"]
    assert all(f"{speaker} in {where}" in err for speaker in ("python", "C") for where in ("import", "step"))
