"""Run grids of short lockstep runs and compute their scores; used by staleness.py and invariance.py.

A cell is one setting; it is run once per seed, each run one process with one thread in OUT/CELL/SEED. Finished runs are
skipped, so a grid can be interrupted and continued.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sfactory.monitor.rows import read_rows
from sfactory.monitor.statistics import bootstrap, iqm
from sfactory.run.reader import read_status

POINTS = 100  # learning curves are read at this many equally spaced env steps


class Cell(NamedTuple):
    name: str
    target: str
    flags: tuple[str, ...]
    """Flags of `sfactory train`."""
    steps: int
    """Length of the run in env steps."""


class Score(NamedTuple):
    """The scores of one setting over seeds."""

    area: np.ndarray
    """[seeds] mean training return over the whole run: area under the learning curve, per env step."""
    final: np.ndarray
    """[seeds] mean training return over the last tenth of the run."""
    extra: dict[str, float]
    """Mean over seeds and the second half of the run of some metrics."""

    def interval(self, values: np.ndarray) -> tuple[float, float, float]:
        """Interquartile mean over seeds and its 95 % bootstrap interval."""
        return float(iqm(values)), *bootstrap([values], iqm)


EXTRA = ("offpolicy/ess", "losses/clipfrac", "offpolicy/effective_lambda", "losses/entropy")


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--report", action="store_true", help="start no run; table and plot of the finished ones")
    return parser.parse_args()


def run(cells: list[Cell], out: Path, seeds: int, jobs: int) -> float:
    """Run every missing (cell, seed), seeds outermost so that an interrupted grid is a complete smaller one.

    Returns the seconds it took. A run that fails raises RuntimeError with its last line.
    """
    missing = [(c, s) for s in range(seeds) for c in cells if not _finished(out / c.name / str(s))]
    started = time.monotonic()

    def one(job: tuple[Cell, int]) -> None:
        cell, seed = job
        folder = out / cell.name / str(seed)
        command = [sys.executable, "-m", "sfactory", "train", cell.target, *cell.flags]
        command += ["--run.mode", "lockstep", "--stop.env-steps", str(cell.steps), "--run.seed", str(1 + 1000 * seed)]
        command += ["--run.dir", str(folder), "--checkpoint.every-seconds", "1e9", "--quiet"]
        if folder.exists():
            subprocess.run(["rm", "-r", str(folder)], check=True)  # incomplete: started again
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise RuntimeError(f"{cell.name} seed {seed}: {done.stderr.strip().splitlines()[-1]}")
        print(f"{time.monotonic() - started:7.0f} s  {cell.name} seed {seed}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, missing))
    return time.monotonic() - started


def _finished(folder: Path) -> bool:
    return read_status(folder).get("state") == "finished"


def finished_seeds(cell: Cell, out: Path, seeds: int) -> int:
    """Return the number of finished seeds of a cell, counted from the first."""
    return next((seed for seed in range(seeds) if not _finished(out / cell.name / str(seed))), seeds)


def score(cell: Cell, out: Path, seeds: int) -> Score | None:
    """Return the score of a cell; None while a seed is missing."""
    folders = [out / cell.name / str(seed) for seed in range(seeds)]
    if not all(map(_finished, folders)):
        return None
    curves = np.stack([curve(folder, cell.steps) for folder in folders])
    extra = {name: float(np.mean([_late(folder, name) for folder in folders])) for name in EXTRA}
    return Score(curves.mean(1), curves[:, -POINTS // 10 :].mean(1), extra)


def _rows(folder: Path) -> list[dict[str, float]]:
    return read_rows(folder)


def curve(folder: Path, steps: int) -> np.ndarray:
    """Return [POINTS] training returns (last 100 episodes) at equally spaced env steps; constant before the first."""
    rows = [row for row in _rows(folder) if "charts/episodic_return" in row]
    at = np.linspace(steps / POINTS, steps, POINTS)
    return np.interp(at, [row["env_steps"] for row in rows], [row["charts/episodic_return"] for row in rows])


def _late(folder: Path, name: str) -> float:
    values = [row[name] for row in _rows(folder) if name in row]
    return float(np.mean(values[len(values) // 2 :])) if values else float("nan")


def show(value: tuple[float, float, float], digits: int = 0) -> str:
    """Format the middle and the interval for a table."""
    middle, low, high = (f"{x:.{digits}f}" for x in value)
    return f"{middle} ({low} to {high})"
