"""An environment family of another package, installed with pip, trains by name with the settings of gymnasium."""

import json
import os
import subprocess
import sys

ENVIRONMENT = '''
import gymnasium
import numpy as np
from sfactory.envs.gymnasium_adapter import EnvGroup


class Guess(gymnasium.Env):
    """Episodes of one step: name the one of three numbers that is observed."""

    observation_space = gymnasium.spaces.Dict({"shown": gymnasium.spaces.Box(0, 1, (3,), np.float64)})
    action_space = gymnasium.spaces.Tuple((gymnasium.spaces.Discrete(3), gymnasium.spaces.Discrete(2)))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.shown = int(self.np_random.integers(3))
        return {"shown": np.eye(3)[self.shown]}, {}

    def step(self, action):
        return {"shown": np.zeros(3)}, float(action[0] == self.shown), True, False, {}


def make(env_id, *, num_envs, seeds, **settings):
    return EnvGroup(Guess, num_envs, seeds, name=f"guessing/{env_id}")
'''
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "guessing-game"
version = "0.1"
[tool.setuptools]
py-modules = ["guessing_game"]
[project.entry-points."sfactory.envs"]
guessing = "guessing_game:make"
"""


def test_environment_of_an_installed_third_party_package_trains(tmp_path):
    source, site, run = tmp_path / "source", tmp_path / "site", tmp_path / "run"
    source.mkdir()
    (source / "guessing_game.py").write_text(ENVIRONMENT)
    (source / "pyproject.toml").write_text(PROJECT)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    words = ["train", "guessing/three", "--run.dir", run, "--stop.target-return", 0.9, "--stop.env-steps", "60k"]
    done = subprocess.run(
        [sys.executable, "-m", "sfactory", *map(str, [*words, "--log.every-seconds", 0.5])],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "settings: those of gymnasium/*, because there is no preset for guessing/three" in done.stderr
    status = json.loads((run / "status.json").read_text())
    assert "stop.target-return 0.9 was reached" in status["sentence"], status  # a third by chance
    assert status["training_return"] >= 0.9, status
    listed = subprocess.run(
        [sys.executable, "-m", "sfactory", "envs"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert "guessing" in listed.stdout
