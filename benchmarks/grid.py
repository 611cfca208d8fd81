"""Run grids of short runs and compute their scores; used by staleness.py, invariance.py and replay.py.

A cell is one setting; it is run once per seed, in OUT/CELL/SEED; in lockstep this is one process with one thread. A
grid goes on where it was stopped: finished runs are skipped, runs with a checkpoint are resumed (in lockstep this
changes no bit), all others start again. Ctrl-C lets the runs save; if the grid itself is killed they save too, because
their parent is gone. Only runs whose status is `finished` have a score; it is kept in a file of the repository
(scores.py), and a run that is there is finished, whether its folder is there or not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from figures import RESULTS
from scores import SETTINGS, Curve, Scores, changed_settings, fingerprint

from sfactory.config import Config
from sfactory.config.flags import split_flags
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.errors import CommandError, SettingError
from sfactory.monitor.format import duration
from sfactory.monitor.statistics import bootstrap, iqm
from sfactory.population.commands import Command, Resources
from sfactory.population.jobs import Job
from sfactory.population.launchers import LocalLauncher
from sfactory.population.runner import check_same_settings, is_free
from sfactory.population.side_by_side import STOPPED, Running, SideBySide
from sfactory.run import checkpoint
from sfactory.run.reader import read_run, read_status
from sfactory.supervisor.output_file import OutputFile

SETTINGS_DIR = Path(__file__).parent / "settings"
SAVE_S = 60  # seconds between checkpoints: what a run loses at most


class Cell(NamedTuple):
    name: str
    target: str
    flags: tuple[str, ...]
    """Flags of `sfactory train`."""
    steps: int
    """Length of the run in env steps."""
    first_seed: int = 0
    """Number of its first seed: cells that must not share seeds have others."""
    mode: str = "lockstep"
    """async: processes and threads as typed, for times; then one run at a time."""
    base: str = ""
    """Name of a file in benchmarks/settings that lies over the preset, below the flags."""

    @property
    def files(self) -> list[Path]:
        """What `--config` is given."""
        return [SETTINGS_DIR / self.base] if self.base else []


class Run(NamedTuple):
    """One run of a grid."""

    cell: Cell
    seed: int
    """Number of the seed, from 0."""
    folder: Path

    @property
    def flags(self) -> list[str]:
        cell = self.cell
        return [*cell.flags, "--run.mode", cell.mode, "--stop.env-steps", str(cell.steps), "--run.seed",
                str(1 + 1000 * (self.cell.first_seed + self.seed))]  # fmt: skip

    @property
    def name(self) -> str:
        return f"{self.cell.name} seed {self.seed}"

    def config(self) -> Config:
        """The settings that the run has. SettingError if its flags are refused."""
        return build(*target_layers(self.cell.target, self.cell.files), split_flags(self.flags)[0])

    def curve(self, scores: Scores) -> Curve | None:
        """What is kept of it; None if it has not finished, or its settings have changed since."""
        kept = scores.find(*self._what)
        return None if kept is None or self.changed(kept) else kept

    def stale(self, scores: Scores) -> tuple[Curve, list[str]] | None:
        """What is kept of it and the settings that have changed since; None if none has, or nothing is kept."""
        kept = scores.find(*self._what)
        changed = [] if kept is None else self.changed(kept)
        return (kept, changed) if kept is not None and changed else None

    def changed(self, kept: Curve) -> list[str]:
        """Names of the settings that have changed since a curve was kept; empty if that is not known."""
        settings = kept.row.get(SETTINGS) or ""
        if not settings:  # nothing to compare with, and a grid has thousands of runs
            return []
        try:
            return changed_settings(settings, self.config())
        except SettingError as error:
            return [str(error)]

    def keep(self, scores: Scores, seconds: float, columns: Mapping[str, str] = MappingProxyType({})) -> Curve:
        """Keep the curve of the finished run in its folder. columns: further ones of the file."""
        return scores.add(*self._what, self.folder, seconds, columns, fingerprint(self.config()))

    @property
    def _what(self) -> tuple[str, int, str, int, list[str]]:
        return self.cell.name, self.seed, self.cell.target, self.cell.steps, self.flags


class Score(NamedTuple):
    """The scores of one setting over seeds."""

    area: np.ndarray
    """[seeds] mean training return over the whole run: area under the learning curve, per env step."""
    final: np.ndarray
    """[seeds] mean training return over the last tenth of the run."""
    extra: dict[str, float]
    """Mean over seeds and the second half of the run of some metrics."""
    curves: np.ndarray = np.zeros((0, 0))
    """[seeds, parts] training return in equal parts of the run."""
    seconds: float = float("nan")
    """Median over seeds of the seconds of a run."""

    def interval(self, values: np.ndarray) -> tuple[float, float, float]:
        """Interquartile mean over seeds and its 95 % bootstrap interval."""
        return float(iqm(values)), *bootstrap([values], iqm)


def arguments(description: str, scores: str) -> argparse.Namespace:
    """The options of a script. scores: name of its file of scores."""
    parser = argparse.ArgumentParser(description=description)
    add_arguments(parser, scores)
    return parser.parse_args()


def add_arguments(parser: argparse.ArgumentParser, scores: str) -> None:
    parser.add_argument("--scores", type=Path, default=RESULTS / scores, help="file with the curves of finished runs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", help="cells whose name contains this, or one of these: A,B")
    parser.add_argument("--report", action="store_true", help="start no run; table and plot of the finished ones")


class Grid:
    """The runs of one command, at most `jobs` at a time."""

    def __init__(self, runs: Sequence[Run], scores: Scores, jobs: int) -> None:
        """runs: in the order in which they begin. Raises CommandError if a folder holds a run of other settings."""
        self.total, self.scores = len(runs), scores
        self.launcher, self.resources = LocalLauncher(), Resources()
        self.processes = SideBySide[Run](jobs, self._start, self._record, lambda run: is_free(run.folder))
        self.seconds: dict[tuple[str, int], list[float]] = {}
        """Target and length -> seconds of its finished runs, those of earlier commands included."""
        self.failed: list[str] = []
        self.again: set[Path] = set()
        """Folders that are started again although they hold checkpoints: those could not be continued."""
        self.stale: dict[str, list[str]] = {}
        """Name of a run that was kept with other settings -> their names."""
        self.outdated: set[Path] = set()
        """Folders of these that still hold the run of then; they are emptied when it starts."""
        for run in runs:
            if (kept := run.curve(scores)) is not None:
                self._count(run, kept.seconds)
                continue
            if (old := run.stale(scores)) is not None:
                self.stale[run.name] = old[1]
            if (run.folder / "config.toml").is_file() and not self._check_settings(run):
                self.outdated.add(run.folder)
            if finished(run.folder) and run.folder not in self.outdated:
                self._keep(run)
            else:
                self.processes.queue.append(run)

    def _check_settings(self, run: Run) -> bool:
        """Whether the run in a folder has the settings of today. If not: CommandError, unless its curve is kept."""
        try:
            check_same_settings(Job(run.name, run.folder, run.config()), read_run(run.folder).config)
        except CommandError:
            if run.name not in self.stale:
                raise
            return False
        return True

    def run(self) -> None:
        """Run what is left. SystemExit after a signal (its code), and if runs failed (their last lines)."""
        print(f"{self.total} runs, {self.total - self.left} finished before{self._time_left()}", flush=True)
        for name, changed in self.stale.items():
            print(f"{name} is stale and runs again: changed since are {', '.join(changed)}", flush=True)
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
        self._clear_outdated(run)
        if self._goes_on(run):
            words = ["resume", str(run.folder), "--quiet"]
        else:
            shutil.rmtree(run.folder, ignore_errors=True)
            words = ["train", run.cell.target, *run.flags, "--run.dir", str(run.folder), "--quiet"]
            words += [word for path in run.cell.files for word in ("--config", str(path))]
            words += ["--checkpoint.every-seconds", str(SAVE_S), "--checkpoint.keep", "1"]
        output = run.folder.with_name(f"{run.seed}.txt")
        output.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if run.cell.mode == "lockstep" else {})}
        command = Command(run.name, [sys.executable, "-m", "sfactory", *words], output, environment)
        return Running(run, self.launcher.submit(command, self.resources), time.monotonic(), OutputFile(output))

    def _clear_outdated(self, run: Run) -> None:
        if run.folder in self.outdated:
            self.outdated.remove(run.folder)
            shutil.rmtree(run.folder)

    def _goes_on(self, run: Run) -> bool:
        """Whether a run has a checkpoint from which it is continued."""
        return run.folder not in self.again and run.folder.is_dir() and bool(checkpoint.candidates(run.folder))

    def _record(self, ended: Running[Run], code: int) -> None:
        run = ended.job
        if finished(run.folder):
            self._keep(run, ended.seconds)
            print(f"[{self.total - self.left}/{self.total}] {run.name}  {duration(ended.seconds)}{self._time_left()}",
                  flush=True)  # fmt: skip
        elif code in STOPPED or self.processes.num_signals:
            print(f"{run.name} stopped at {read_status(run.folder).get('env_steps', 0):,} steps", flush=True)
        elif self._goes_on(run):
            print(f"{run.name} is started again: {ended.last_line()}", flush=True)
            self.again.add(run.folder)
            self.processes.queue.append(run)
        else:
            self.failed.append(f"{run.name}: {ended.last_line() or f'exit {code}'}")
            print(f"FAILED {self.failed[-1]}", flush=True)

    def _keep(self, run: Run, wall_s: float = 0.0) -> None:
        """wall_s: of the process that finished it, which may be only the rest of the run."""
        seconds = max(wall_s, float(read_status(run.folder).get("seconds", 0.0)))
        run.keep(self.scores, seconds)
        self._count(run, seconds)

    def _count(self, run: Run, seconds: float) -> None:
        self.seconds.setdefault((run.cell.target, run.cell.steps), []).append(seconds)

    def _time_left(self) -> str:
        """The remaining time by the finished runs: the same task and length, or else by the number of steps."""
        waiting = [*self.processes.queue, *(one.job for one in self.processes.running)]
        expected = [seconds for run in waiting if (seconds := self._expected(run)) is not None]
        if not expected:
            return f"; {len(waiting)} left" if waiting else ""
        # Never less than the longest one that has not begun; what the running ones have done is not known.
        seconds = max(sum(expected) / self.processes.max_running, max(expected))
        return f"; {len(waiting)} left, about {duration(seconds)}"

    def _expected(self, run: Run) -> float | None:
        """Seconds that a run may take; None while no run is finished."""
        if same := self.seconds.get((run.cell.target, run.cell.steps)):
            return sum(same) / len(same)
        steps = sum(length * len(values) for (_, length), values in self.seconds.items())
        return sum(map(sum, self.seconds.values())) / steps * run.cell.steps if steps else None


def chosen_cells(cells: Iterable[Cell], only: str) -> list[Cell]:
    """The cells whose name contains one of the texts of `only`, with commas between them; each name once."""
    return list({cell.name: cell for cell in cells if any(text in cell.name for text in only.split(","))}.values())


def runs_of(cells: Sequence[Cell], out: Path, seeds: int) -> list[Run]:
    """Every (cell, seed), seeds outermost so that an interrupted grid is a complete smaller one."""
    return [Run(cell, seed, out / cell.name / str(seed)) for seed in range(seeds) for cell in cells]


def run(cells: Sequence[Cell], scores: Scores, out: Path, seeds: int, jobs: int) -> float:
    """Run every missing (cell, seed).

    Returns the seconds it took. SystemExit after a signal, or if a run failed, with its last line.
    """
    started = time.monotonic()
    Grid(runs_of(cells, out, seeds), scores, jobs).run()
    return time.monotonic() - started


def measure(
    description: str,
    name: str,
    cells: Iterable[Cell],
    report: Callable[[Scores, int], list[str]],
    most_jobs: int | None = None,
) -> None:
    """What a script with one grid does: run what is missing, print its page and write it to NAME_tables.md.

    report: makes the lines of the page from the scores and the number of seeds. most_jobs: bound of --jobs.
    """
    options = arguments(description, f"{name}_scores.csv")
    kept, jobs = Scores(options.scores), min(options.jobs, most_jobs or options.jobs)
    if not options.report:
        took = run(chosen_cells(cells, options.only), kept, options.out, options.seeds, jobs)
        print(f"{took / 60:.1f} minutes with {jobs} jobs")
    page = "\n".join(report(kept, options.seeds))
    (RESULTS / f"{name}_tables.md").write_text(page)
    print(page)


def finished(folder: Path) -> bool:
    """Whether a run has trained to its end. Also if a signal has stopped it there: a resume finds nothing to do."""
    status = read_status(folder)
    if status.get("exit") in STOPPED:
        return 0 < read_run(folder).config.stop.env_steps <= int(status.get("env_steps", 0))
    return status.get("state") == "finished"


def _curves(cell: Cell, scores: Scores, seeds: int) -> list[Curve]:
    """The curves of a cell's first seeds, up to the first one that is missing."""
    found: list[Curve] = []
    for seed in range(seeds):
        if (one := Run(cell, seed, Path()).curve(scores)) is None:
            break
        found.append(one)
    return found


def finished_seeds(cell: Cell, scores: Scores, seeds: int) -> int:
    """Return the number of finished seeds of a cell, counted from the first."""
    return len(_curves(cell, scores, seeds))


def score(cell: Cell, scores: Scores, seeds: int) -> Score | None:
    """Return the score of a cell; None while a seed is missing."""
    curves = _curves(cell, scores, seeds)
    if len(curves) < seeds:
        return None
    extra = {name: float(np.mean([one.extra[name] for one in curves])) for name in curves[0].extra}
    area, final = (np.array([getattr(one, name) for one in curves]) for name in ("area", "final"))
    seconds = float(np.median([one.seconds for one in curves]))
    return Score(area, final, extra, np.stack([one.values for one in curves]), seconds)


def show(value: tuple[float, float, float], digits: int = 0) -> str:
    """Format the middle and the interval for a table."""
    middle, low, high = (f"{x:.{digits}f}" for x in value)
    return f"{middle} ({low} to {high})"
