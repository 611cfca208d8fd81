"""docs/selfplay.md: its command trains with a pool, and what the page says of folders and metrics is there."""

import json
import os
import re
import sys

import numpy as np
import pytest
from documents import ROOT, commands
from forked_processes import run_forked

import sfactory
from sfactory.monitor.table import find_metric

PAGE = ROOT / "docs" / "selfplay.md"
SMALL = [
    "--sampling.envs-per-group", "8", "--sampling.rollout-length", "16", "--batch.minibatches", "2", "--quiet",
    "--run.mode", "lockstep", "--checkpoint.exact", "false", "--stop.env-steps", "1200", "--selfplay.every", "400",
    "--run.dir", "run",
]  # fmt: skip


@pytest.mark.timeout(300)
def test_selfplay_page_command_trains_with_a_pool(tmp_path):
    (train,) = (words for words in commands(PAGE) if "envpool/TicTacToe-v1" in words)
    words = [sys.executable, "-m", "sfactory", *train, *SMALL]
    done = run_forked(words, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    members = sorted(path for path in (tmp_path / "run/pool").iterdir() if path.is_dir())
    assert len(members) >= 1
    assert json.loads((tmp_path / "run/pool/ratings.json").read_text())["opponents"]
    policy = sfactory.load_policy(members[0])
    assert policy.env_steps == int(members[0].name)
    assert 0 <= policy.act(np.zeros((3, 3, 2), bool), mask=np.ones(9, bool)) < 9
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    named = re.findall(r"^\| `(selfplay/[a-z_]+)`", PAGE.read_text(), re.MULTILINE)
    assert len(named) >= 3
    for name in named:
        find_metric(name)
        assert name in last
