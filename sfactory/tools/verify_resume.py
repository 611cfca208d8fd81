"""Verify that a run that is killed and resumed equals an uninterrupted run bit for bit.

Run A is not interrupted. Run B has the same settings, is killed with SIGKILL at random moments and resumed each time.
Both run in lockstep. Compared are the bytes of all tensors of the last checkpoint, and all metrics that do not depend
on wall-clock time.
"""

from __future__ import annotations

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfactory.errors import Exit
from sfactory.monitor.rows import read_rows
from sfactory.run import checkpoint
from sfactory.run.reader import read_status

WALL_CLOCK = (
    "seconds",
    "charts/SPS",
    "charts/environment_SPS",
    "charts/FPS",
    "lag/seconds",
    "stage/",
    "queue/",
    "system/",
    "eval/seconds",
)
"""Prefixes of the metrics that measure wall-clock time or the machine."""
SAVE_EVERY_S = 0.3  # of B: often, so that kills happen before, between and during saves


class TrialRunFailed(RuntimeError):
    """One of the two runs failed or ended too early, so that they cannot be compared."""

    exit_code = Exit.USAGE


def verify_resume(
    arguments: list[str], steps: int, kills: int, seed: int, log: Callable[[str], None], folder: Path | None = None
) -> list[str]:
    """Run A and B in `folder` (a temporary one if None). arguments: TARGET and flags of `sfactory train`.

    Returns the differences, one line each; empty if the runs are equal bit for bit. Raises TrialRunFailed if a run
    fails or finishes before it was killed `kills` times.
    """
    with tempfile.TemporaryDirectory(prefix="sfactory-verify-") as temporary:
        place = folder or Path(temporary)
        a, b = place / "straight", place / "killed"
        arguments = [*arguments, "--run.mode", "lockstep", "--stop.env-steps", str(steps), "--quiet"]
        arguments += ["--run.seed", str(seed), "--log.every-updates", "1", "--checkpoint.every-seconds"]
        _finish(_start("train", *arguments, "1e9", "--run.dir", str(a)))
        log(f"A: {steps:,} steps, not interrupted")
        generator = random.Random(seed)
        moments = sorted(generator.uniform(0, steps) for _ in range(kills))
        process = _start("train", *arguments, str(SAVE_EVERY_S), "--run.dir", str(b))
        for number, moment in enumerate(moments):
            if not _kill_at(process, b, moment):
                raise TrialRunFailed(f"run B finished after {number} of {kills} kills; increase --steps")
            newest = checkpoint.newest(b)
            log(f"B: killed at {_reached(b):,} steps, resumed from {int(newest.name) if newest else 0:,}")
            process = _start("resume", str(b), "--quiet", "--trust")
        _finish(process)
        return differences(a, b)


def differences(a: Path, b: Path) -> list[str]:
    """Return the differences between two finished runs, one line each."""
    one, two = checkpoint.newest(a), checkpoint.newest(b)
    if one is None or two is None or one.name != two.name:
        return [f"last checkpoints: {one and one.name} against {two and two.name}"]
    found = [
        f"{path.name} of checkpoint {one.name}"
        for path in sorted(one.glob("*.safetensors"))
        if hashlib.sha256(path.read_bytes()).digest() != hashlib.sha256((two / path.name).read_bytes()).digest()
    ]
    rows, others = _rows(a), _rows(b)
    if len(rows) != len(others):
        found.append(f"rows of metrics: {len(rows)} against {len(others)}")
    for row, other in zip(rows, others, strict=False):
        names = sorted(name for name in {*row, *other} if row.get(name) != other.get(name))
        if names:
            found.append(f"metrics at {row['env_steps']:,} steps: {', '.join(names[:6])}")
            break
    return found


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sfactory", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate()
    if process.returncode != 0:
        raise TrialRunFailed(err.strip().splitlines()[-1].removeprefix("sfactory: ") if err.strip() else "no output")


def _kill_at(process: subprocess.Popen[str], run: Path, moment: float) -> bool:
    """Kill the run once `moment` steps are trained; returns False if it ended before."""
    while _reached(run) < moment or not list((run / "checkpoints").glob("0*")):
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def _reached(run: Path) -> int:
    return int(read_status(run).get("env_steps", 0))


def _rows(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if not name.startswith(WALL_CLOCK)} for row in read_rows(run)]
