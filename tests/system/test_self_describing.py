"""Every row that the learner trains on is checked while samplers and inference workers are killed at random."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_helpers import SMALL, finish, wait_for, workers_named

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
SYSTEM = Path(__file__).parent
SETTINGS = [
    *SMALL, "--stop.env-steps", 0, "--checkpoint.every-seconds", 3600, "--run.inference-workers", 2,
    "--optim.lr", "2e-3", "--optim.schedule", "constant", "--loss.entropy-coef", 0.05, "--model.hidden", 32,
    "--normalize.obs", "false", "--normalize.reward", "false", "--log.quiet", "true",
]  # fmt: skip
GRU = ["--model.core", "gru", "--model.core-size", 16, "--model.separate", "false"]
NATIVE = ["--run.kernels", "native", "--run.precision", "fp32"]


def begun(run, settings):
    words = [sys.executable, SYSTEM / "witnessed_run.py", run, *SETTINGS, *settings]
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=SYSTEM,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SYSTEM), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def found(run):
    """What the witness has written; zeros before the first update."""
    path = run / "witness.json"
    return json.loads(path.read_text()) if path.exists() else {"updates": 0, "violations": [], "restarted": 0}


def kill_at_random(process, run, kills, draw):
    """Kill one worker after the other; the run goes on for a while in between. Every fourth is an inference worker."""
    for number in range(kills):
        seen, more = found(run)["updates"], draw.randint(1, 12)
        wait_for(lambda: found(run)["updates"] >= seen + more or found(run)["violations"], 90, process)  # noqa: B023
        if found(run)["violations"]:
            return
        time.sleep(draw.random() * 0.02)  # at any moment of an update
        victims = workers_named(process, "inference" if number % 4 == 3 else "sampler")
        if victims:
            draw.choice(victims).kill()


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        pytest.param(GRU, 8, id="gru"),
        pytest.param(NATIVE, 4, id="native"),
        pytest.param(GRU, 150, id="gru, long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
        pytest.param(NATIVE, 100, id="native, long", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_learner_trains_on_true_rows_only_while_workers_are_killed(tmp_path, settings, kills):
    run = tmp_path / "run"
    process = begun(run, settings)
    try:
        kill_at_random(process, run, kills, random.Random(kills))
        if not (seen := found(run))["violations"]:  # the restarted workers deliver rows, too
            wait_for(lambda: found(run)["updates"] >= seen["updates"] + 20 or found(run)["violations"], 90, process)
    finally:
        process.terminate()
    finish(process, 143)
    end, ledger = found(run), json.loads((run / "status.json").read_text())["ledger"]
    assert end["violations"] == []
    assert end["continued"] > end["updates"]  # several slots per update
    assert end["restarted"] >= kills // 3, "new generations of samplers delivered rows"
    assert ledger["sampled"] == sum(ledger[name] for name in ("trained", "skipped", "discarded", "in_flight"))
    assert ledger["trained"] + ledger["skipped"] == end["rows"], "the witness has seen every row once"
