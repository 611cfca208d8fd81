"""The console script: train, evaluate, resume, the three commands that people type, on the real pipeline."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sfactory.config.toml_file import from_toml

SMALL = [
    "--run.mode", "lockstep", "--stop.env-steps", "256", "--sampling.envs-per-group", "4",
    "--sampling.rollout-length", "16", "--batch.epochs", "1", "--log.every-updates", "1",
]  # fmt: skip


def script(*words, cwd):
    command = [str(Path(sys.executable).with_name("sfactory")), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_console_script_trains_evaluates_and_resumes(tmp_path):
    done = script("train", "classic/cartpole", "--run.dir", "runs/a", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"finished \(exit 0\): .*; last checkpoint runs/a/checkpoints/\d+ at", done.stderr.splitlines()[-1]
    )
    folder = tmp_path / "runs/a"
    assert {"config.toml", "metrics.jsonl", "tb", "log.txt", "checkpoints", "status.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert from_toml(folder / "config.toml").env.name == "gymnasium/CartPole-v1"

    played = script("eval", "runs/a", "--episodes", "5", "--json", "--seed", "3", cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    row = json.loads(played.stdout)
    assert len(row["returns"]) == 5
    assert row["env_steps"] >= 256
    assert row["mean"] == pytest.approx(sum(row["returns"]) / 5)

    again = script("resume", "runs/a", "--stop.env-steps", "512", "--quiet", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    warning, _ = again.stderr.splitlines()
    assert warning.startswith("warning: stop.env-steps was 256 and is 512 from here on"), (
        "the rate of the preset is linear"
    )
    steps = [json.loads(line)["env_steps"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 512
