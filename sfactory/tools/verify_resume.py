"""`sfactory verify-resume`: is a run that is killed and resumed the run that was never stopped, bit for bit?

A trains straight through. B is the same run, killed with SIGKILL at random moments and resumed each time. Both are
lockstep. Compared are the bytes of every tensor of the last checkpoint and every row of metrics but for wall-clock.
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

WALL_CLOCK = ("seconds", "charts/SPS", "charts/FPS", "lag/seconds", "stage/", "queue/", "system/", "eval/seconds")
SAVE_EVERY_S = 0.3  # of B: often, so that kills fall between, before and into saves


class RunFailed(RuntimeError):
    """One of the two runs could not do its part, so that nothing can be said."""

    exit_code = Exit.USAGE


def verify_resume(
    words: list[str], steps: int, kills: int, seed: int, say: Callable[[str], None], folder: Path | None = None
) -> list[str]:
    """Run A and B in `folder` (a temporary one if None). words: TARGET and flags of `sfactory train`.

    Returns what differs, one line each; empty means the same to the bit. Raises RunFailed if a run fails by itself, or
    is over before it could be killed so often.
    """
    with tempfile.TemporaryDirectory(prefix="sfactory-verify-") as temporary:
        place = folder or Path(temporary)
        a, b = place / "straight", place / "killed"
        words = [*words, "--run.mode", "lockstep", "--stop.env-steps", str(steps), "--quiet"]
        words += ["--run.seed", str(seed), "--log.every-updates", "1", "--checkpoint.every-seconds"]
        _finish(_start("train", *words, "1e9", "--run.dir", str(a)))
        say(f"A: {steps:,} steps, never stopped")
        draws = random.Random(seed)
        moments = sorted(draws.uniform(0, steps) for _ in range(kills))
        process = _start("train", *words, str(SAVE_EVERY_S), "--run.dir", str(b))
        for number, moment in enumerate(moments):
            if not _kill_at(process, b, moment):
                raise RunFailed(f"B was over after {number} of {kills} kills; give it more --steps")
            newest = checkpoint.newest(b)
            say(f"B: killed at {_reached(b):,} steps, resumed from {int(newest.name) if newest else 0:,}")
            process = _start("resume", str(b), "--quiet")
        _finish(process)
        return differences(a, b)


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two finished runs; one line each."""
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


def _start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sfactory", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate()
    if process.returncode != 0:
        raise RunFailed(err.strip().splitlines()[-1].removeprefix("sfactory: ") if err.strip() else "no word")


def _kill_at(process: subprocess.Popen[str], run: Path, moment: float) -> bool:
    """SIGKILL once that many steps are trained; False if the run was over before."""
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
