"""Two inference workers in a real run: one is killed, and nothing is lost."""

import json

import pytest
from run_helpers import finish, rows, start, steps, wait_for, workers_named


@pytest.mark.faults
def test_run_with_two_inference_workers_survives_the_death_of_one(tmp_path):
    run = tmp_path / "run"
    # One slot per group: every update needs the groups of both workers.
    words = ["--run.inference-workers", 2, "--sampling.slots-per-group", 1, "--stop.env-steps", 15_000]
    process = start(run, *words)
    wait_for(lambda: steps(run) > 0, process=process)
    assert len(workers_named(process, "inference")) == 2
    (second,) = workers_named(process, "inference-1")
    second.kill()
    before = steps(run)
    wait_for(lambda: steps(run) > before, seconds=20.0, process=process)
    finish(process, 0)
    log = (run / "log.txt").read_text()
    assert log.count("inference-1 exited (killed by SIGKILL); restarted") == 1
    assert log.count("restarted") == 1
    ledger = json.loads((run / "status.json").read_text())["ledger"]
    assert ledger["sampled"] == sum(ledger[k] for k in ("trained", "skipped", "discarded", "in_flight"))
    assert ledger["discarded"] == ledger["skipped"] == 0
    assert rows(run)[-1]["faults/inference"] == 1
