"""Run grids of short lockstep runs and compute their scores; used by staleness.py and invariance.py.

A cell is one setting; it is run once per seed, each run one process with one thread in OUT/CELL/SEED. A grid goes on
where it was stopped: finished runs are skipped, runs with a checkpoint are resumed (in lockstep this changes no bit),
all others start again. Ctrl-C lets the runs save; if the grid itself is killed they save too, because their parent is
gone. Only runs whose status is `finished` have a score.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sfactory.config import Config
from sfactory.config.flags import split_flags
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.monitor.format import duration
from sfactory.monitor.rows import read_rows
from sfactory.monitor.statistics import bootstrap, iqm
from sfactory.population.commands import Command, Resources
from sfactory.population.jobs import Job
from sfactory.population.launchers import LocalLauncher
from sfactory.population.runner import check_same_settings, is_free
from sfactory.population.side_by_side import STOPPED, Running, SideBySide
from sfactory.run import checkpoint
from sfactory.run.reader import read_run, read_status
from sfactory.supervisor.output_file import OutputFile

POINTS = 100  # learning curves are read at this many equally spaced env steps
SAVE_S = 60  # seconds between checkpoints: what a run loses at most


class Cell(NamedTuple):
    name: str
    target: str
    flags: tuple[str, ...]
    """Flags of `sfactory train`."""
    steps: int
    """Length of the run in env steps."""


class Run(NamedTuple):
    """One run of a grid."""

    cell: Cell
    seed: int
    """Number of the seed, from 0."""
    folder: Path

    @property
    def flags(self) -> list[str]:
        cell = self.cell
        return [*cell.flags, "--run.mode", "lockstep", "--stop.env-steps", str(cell.steps), "--run.seed",
                str(1 + 1000 * self.seed)]  # fmt: skip

    @property
    def name(self) -> str:
        return f"{self.cell.name} seed {self.seed}"

    def config(self) -> Config:
        """The settings that the run has. SettingError if its flags are refused."""
        return build(*target_layers(self.cell.target), split_flags(self.flags)[0])


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
    add_arguments(parser)
    return parser.parse_args()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--report", action="store_true", help="start no run; table and plot of the finished ones")


class Grid:
    """The runs of one command, at most `jobs` at a time."""

    def __init__(self, cells: Sequence[Cell], out: Path, seeds: int, jobs: int) -> None:
        """Raises CommandError if a folder holds a run of other settings."""
        runs = [Run(c, s, out / c.name / str(s)) for s in range(seeds) for c in cells]  # an incomplete grid has seeds
        self.total = len(runs)
        self.launcher, self.resources = LocalLauncher(), Resources()
        self.processes = SideBySide[Run](jobs, self._start, self._record, lambda run: is_free(run.folder))
        self.seconds: dict[tuple[str, int], list[float]] = {}
        """Target and length -> seconds of its finished runs, those of earlier commands included."""
        self.failed: list[str] = []
        self.again: set[Path] = set()
        """Folders that are started again although they hold checkpoints: those could not be continued."""
        for run in runs:
            if (run.folder / "config.toml").is_file():
                check_same_settings(Job(run.name, run.folder, run.config()), read_run(run.folder).config)
            if _finished(run.folder):
                self._count(run)
            else:
                self.processes.queue.append(run)

    def run(self) -> None:
        """Run what is left. SystemExit after a signal (its code), and if runs failed (their last lines)."""
        print(f"{self.total} runs, {self.total - self.left} finished before{self._time_left()}", flush=True)
        self.processes.run()
        if self.processes.num_signals:
            print(f"{self.left} runs left; the same command goes on", flush=True)
            raise SystemExit(int(self.processes.stop_code))
        if self.failed:
            raise SystemExit("\n".join(self.failed))

    @property
    def left(self) -> int:
        """Runs that are not finished, failed ones included."""
        return self.total - sum(map(len, self.seconds.values()))

    def _start(self, run: Run) -> Running[Run]:
        goes_on = run.folder not in self.again and run.folder.is_dir() and bool(checkpoint.candidates(run.folder))
        if goes_on:
            words = ["resume", str(run.folder), "--quiet"]
        else:
            shutil.rmtree(run.folder, ignore_errors=True)
            words = ["train", run.cell.target, *run.flags, "--run.dir", str(run.folder), "--quiet"]
            words += ["--checkpoint.every-seconds", str(SAVE_S), "--checkpoint.keep", "1"]
        output = run.folder.with_name(f"{run.seed}.txt")
        output.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = Command(run.name, [sys.executable, "-m", "sfactory", *words], output, environment)
        return Running(run, self.launcher.submit(command, self.resources), time.monotonic(), OutputFile(output))

    def _record(self, ended: Running[Run], code: int) -> None:
        run = ended.job
        if _finished(run.folder):
            self._count(run, ended.seconds)
            print(f"[{self.total - self.left}/{self.total}] {run.name}  {duration(ended.seconds)}{self._time_left()}",
                  flush=True)  # fmt: skip
        elif code in STOPPED or self.processes.num_signals:
            print(f"{run.name} stopped at {read_status(run.folder).get('env_steps', 0):,} steps", flush=True)
        elif run.folder not in self.again and run.folder.is_dir() and checkpoint.candidates(run.folder):
            print(f"{run.name} is started again: {ended.last_line()}", flush=True)
            self.again.add(run.folder)
            self.processes.queue.append(run)
        else:
            self.failed.append(f"{run.name}: {ended.last_line() or f'exit {code}'}")
            print(f"FAILED {self.failed[-1]}", flush=True)

    def _count(self, run: Run, wall_s: float = 0.0) -> None:
        """wall_s: of the process that finished it, which may be only the rest of the run."""
        seconds = max(wall_s, float(read_status(run.folder).get("seconds", 0.0)))
        self.seconds.setdefault((run.cell.target, run.cell.steps), []).append(seconds)

    def _time_left(self) -> str:
        """The remaining time by the finished runs: the same task and length, or else by the number of steps."""
        waiting = [*self.processes.queue, *(one.job for one in self.processes.running)]
        known = {key: sum(values) / len(values) for key, values in self.seconds.items()}
        steps = sum(length * len(values) for (_, length), values in self.seconds.items())
        if not waiting or not steps:
            return f"; {len(waiting)} left" if waiting else ""
        per_step = sum(map(sum, self.seconds.values())) / steps
        expected = [known.get((run.cell.target, run.cell.steps), per_step * run.cell.steps) for run in waiting]
        # Never less than the longest one that has not begun; what the running ones have done is not known.
        seconds = max(sum(expected) / self.processes.max_running, max(expected))
        return f"; {len(waiting)} left, about {duration(seconds)}"


def run(cells: Sequence[Cell], out: Path, seeds: int, jobs: int) -> float:
    """Run every missing (cell, seed), seeds outermost so that an interrupted grid is a complete smaller one.

    Returns the seconds it took. SystemExit after a signal, or if a run failed, with its last line.
    """
    started = time.monotonic()
    Grid(cells, out, seeds, jobs).run()
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
