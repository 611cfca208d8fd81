"""docs/agents.md: the example is taken from the page, checked, trained, evaluated and used from Python."""

import json
import os
import sys

import numpy as np
import pytest
from documents import ROOT, commands, named
from forked_processes import run_forked

import sfactory

PAGE = ROOT / "docs" / "agents.md"
pytestmark = pytest.mark.timeout(300)
SMALL = [
    "--sampling.envs-per-group", "4", "--sampling.rollout-length", "16", "--batch.minibatches", "2", "--quiet",
    "--stop.env-steps", "2000", "--run.mode", "lockstep", "--checkpoint.exact", "false", "--run.dir", "run",
]  # fmt: skip


def run(folder, *words):
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    words = [sys.executable, "-m", "sfactory", *words]
    done = run_forked(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.slow
def test_agents_page_example_is_checked_trained_and_played(tmp_path, monkeypatch):
    (tmp_path / "my_agents.py").write_text(named(PAGE, "my_agents.py"))
    check, train = (words for words in commands(PAGE) if "pettingzoo/my_agents:Agree" in words)
    run(tmp_path, *check)
    run(tmp_path, *train, *SMALL)
    result = json.loads(run(tmp_path, "eval", "run", "--episodes", "3", "--json"))
    assert result["lengths"] == [10] * 3
    assert {"return_left", "return_right"} <= set(result["infos"])
    monkeypatch.chdir(tmp_path)
    policy = sfactory.load_policy(tmp_path / "run")
    log = (tmp_path / "run/log.txt").read_text()
    assert "has several agents" not in log
    words = [word.replace("pettingzoo/", "") for word in train]
    run(tmp_path, *words, *SMALL[:-2], "--run.dir", "other", "--stop.env-steps", "100")
    assert "my_agents:Agree has several agents, and these settings are made for one" in (
        (tmp_path / "other/log.txt").read_text()
    )
    assert policy.act(np.zeros(2, np.float32), agent="left", mask=None) in (0, 1)
