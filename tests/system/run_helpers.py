"""Helpers to start, observe and end real runs from the command line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

SMALL = [
    "--sampling.num-samplers", "3", "--sampling.groups-per-sampler", "2", "--sampling.envs-per-group", "4",
    "--sampling.rollout-length", "8", "--batch.minibatches", "2", "--batch.epochs", "1",
    "--log.every-seconds", "0.5", "--checkpoint.every-seconds", "1", "--run.device", "cpu",
]  # fmt: skip

STARTED = []
"""Runs that this test has started; `conftest.py` ends what is left of them."""


def command(*arguments):
    return [sys.executable, "-m", "sfactory", *map(str, arguments)]


def start(run_dir, *arguments, target="gymnasium/CartPole-v1", popen=subprocess.Popen):
    """Start a run. popen: `ForkedCommand` where only what the run does is looked at, not how its processes start."""
    options = ["--run.dir", run_dir, *SMALL, *arguments]
    process = popen(
        command("train", target, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def rows(run_dir):
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(condition, seconds=100.0, process=None):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        if process is not None and process.poll() is not None:
            raise AssertionError(f"exited with {process.returncode}: {process.stderr.read()[-3000:]}")
        time.sleep(0.05)
    raise AssertionError(f"condition not met within {seconds:g} s")


def steps(run_dir):
    return rows(run_dir)[-1]["env_steps"] if rows(run_dir) else 0


def children(process):
    return psutil.Process(process.pid).children(recursive=True)


def workers_named(process, kind):
    """Return the workers of a run whose name starts with `kind`: their stderr is debug/<name>.txt."""
    workers = []
    for child in children(process):
        try:
            if Path(os.readlink(f"/proc/{child.pid}/fd/2")).stem.startswith(kind):
                workers.append(child)
        except OSError:
            continue
    return workers


def finish(process, code):
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err[-3000:]
    return out, err


def all_exited(processes):
    return not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
