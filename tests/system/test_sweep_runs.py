"""Sweeps of real runs: finished, repeated, and stopped by a signal with checkpoints."""

import json
import os
import signal
import subprocess

import psutil
from forked_processes import ForkedCommand, run_forked
from run_helpers import all_exited, command, steps, wait_for

SHORT = ["--sampling.envs-per-group", "4", "--batch.minibatches", "2", "--log.every-seconds", "0.5"]


def test_sweep_of_two_runs_finishes_and_is_skipped_when_repeated(tmp_path):
    arguments = command("sweep", "classic/cartpole", "--seeds", "0..1", "--jobs", 2, "--stop.env-steps", 4000, *SHORT)
    first = run_forked([*arguments, "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert first.returncode == 0, first.stderr[-3000:]
    assert first.stderr.splitlines()[-1] == "sfactory: finished (exit 0): 2 of 2 runs finished"
    (panel,) = json.loads(first.stdout)["panels"]
    assert [len(group["scores"]) for group in panel["groups"]] == [2]
    (folder,) = (tmp_path / "runs").iterdir()
    for name in ("s0", "s1"):
        assert json.loads((folder / name / "status.json").read_text())["state"] == "finished"
    before = (folder / "s0/metrics.jsonl").read_bytes()
    again = run_forked(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0
    assert "2 finished before" in again.stderr
    assert (folder / "s0/metrics.jsonl").read_bytes() == before


def test_sweep_signal_stops_every_run_with_a_checkpoint(tmp_path):
    options = ["--seeds", "0..2", "--jobs", 2, "--stop.env-steps", "10M", "--dir", "s", *SHORT]
    arguments = command("sweep", "classic/cartpole", *options)
    process = ForkedCommand(
        arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: min(steps(tmp_path / "s/s0"), steps(tmp_path / "s/s1")) > 0, 90.0, process)
    processes = psutil.Process(process.pid).children(recursive=True)
    assert len(processes) >= 8  # two runs, each a supervisor and three workers at least
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err[-3000:]
    assert "repeat the command to continue" in err
    wait_for(lambda: all_exited(processes))
    for name in ("s0", "s1"):
        status = json.loads((tmp_path / "s" / name / "status.json").read_text())
        assert (status["state"], status["env_steps"] > 0) == ("terminated", True)
        assert status["checkpoint"]
    assert not (tmp_path / "s/s2").exists()
