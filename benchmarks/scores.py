"""Keep the learning curves of finished runs in one file, so that a grid needs no folder of runs to go on.

The file is a table (CSV) with a row per finished run: what was run (cell, seed, target, steps, flags), where and when
(processor, commit, date), and its training return over the run in `BLOCKS` equal parts. It is kept in the repository as
the raw data of the tables and pictures. A row counts only for a run with the same flags; to measure it again, delete
the row.
"""

from __future__ import annotations

import csv
import datetime
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sfactory.device.machine import processor
from sfactory.monitor.rows import read_rows

POINTS = 100  # learning curves are read at this many equally spaced env steps
BLOCKS = 20  # and kept as means over equal parts
RETURN = "charts/episodic_return"
EXTRA = ("offpolicy/ess", "losses/clipfrac", "offpolicy/effective_lambda", "losses/entropy")
FIELDS = ("cell", "seed", "target", "steps", "flags", "seconds", "processor", "commit", "date", *EXTRA, "curve")


class Curve(NamedTuple):
    """What is kept of one finished run."""

    values: np.ndarray
    """[BLOCKS] mean training return in each part of the run."""
    extra: dict[str, float]
    """Some metrics, mean over the second half of the run."""
    seconds: float
    row: Mapping[str, str] = MappingProxyType({})
    """Its row of the file: processor, commit, date and further columns are read from here."""

    @property
    def area(self) -> float:
        """Mean training return over the whole run: area under the learning curve, per env step."""
        return float(self.values.mean())

    @property
    def final(self) -> float:
        """Mean training return over the last tenth of the run."""
        return float(self.values[-BLOCKS // 10 :].mean())

    def at_seconds(self, seconds: float) -> float:
        """Mean training return over a tenth of the run that ends this many seconds after its start, or at its end.

        Steps per second are taken as constant within the run.
        """
        tenth = BLOCKS // 10
        end = min(max(round(BLOCKS * seconds / self.seconds), tenth), BLOCKS)
        return float(self.values[end - tenth : end].mean())


class Scores:
    """The table of finished runs in one file."""

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        """columns: those of this file that other files do not have."""
        self.path, self.fields = path, (*FIELDS[:-1], *columns, FIELDS[-1])
        self.curves: dict[tuple[str, ...], Curve] = {}
        if path.is_file():
            with open(path, newline="") as file:
                for row in csv.DictReader(file):
                    self._read(row)

    def _read(self, row: dict[str, str]) -> Curve:
        """Keep what is written in a row."""
        values, extra = np.array(row["curve"].split(), float), {name: float(row[name]) for name in EXTRA}
        found = self.curves[_key(row)] = Curve(values, extra, float(row["seconds"]), row)
        return found

    def metric(self, target: str) -> str:
        """The metric whose curve is kept for a target."""
        return RETURN

    def find(self, cell: str, seed: int, target: str, steps: int, flags: Sequence[str]) -> Curve | None:
        """The curve of a run; None if it is not there, or was run with other flags."""
        return self.curves.get((cell, str(seed), target, str(steps), " ".join(flags)))

    def add(
        self,
        cell: str,
        seed: int,
        target: str,
        steps: int,
        flags: Sequence[str],
        folder: Path,
        seconds: float,
        columns: Mapping[str, str] = MappingProxyType({}),
    ) -> Curve:
        """Read the curve of a finished run from its folder, and write its row at the end of the file at once.

        columns: values of this file's own columns.
        """
        values = curve(folder, steps, self.metric(target)).reshape(BLOCKS, -1).mean(1)
        row = {
            "cell": cell, "seed": str(seed), "target": target, "steps": str(steps), "flags": " ".join(flags),
            "seconds": f"{seconds:.1f}", "processor": processor(), "commit": commit(),
            "date": datetime.date.today().isoformat(), **columns,
            **{name: f"{x:.4g}" for name, x in _late(folder).items()},
            "curve": " ".join(f"{x:.5g}" for x in values),
        }  # fmt: skip
        new = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        return self._read(row)  # rounded, so that a page written now is that of a later command


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("cell", "seed", "target", "steps", "flags"))


PROGRAM = ("sfactory", "configs/*/**", "envs")
"""What decides how a run goes; the results and pages that a grid writes do not."""


def commit() -> str:
    """The short name of the commit that runs, with + if files of the program differ from it; empty without git."""
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        words = [*git, "rev-parse", "--short", "HEAD"]
        name = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *PROGRAM], timeout=20).returncode
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{name}{'+' * bool(changed)}"


def curve(folder: Path, steps: int, metric: str = RETURN) -> np.ndarray:
    """Return [POINTS] training returns (last 100 episodes) at equally spaced env steps; constant before the first.

    metric: another one than the return. NaN for a run without it, as one without a complete episode.
    """
    rows = [row for row in read_rows(folder) if row.get(metric) is not None]  # None: the number was not finite
    if not rows:
        return np.full(POINTS, np.nan)
    at = np.linspace(steps / POINTS, steps, POINTS)
    return np.interp(at, [row["env_steps"] for row in rows], [row[metric] for row in rows])


def _late(folder: Path) -> dict[str, float]:
    rows = read_rows(folder)
    found = {}
    for name in EXTRA:
        values = [row[name] for row in rows if row.get(name) is not None]
        found[name] = float(np.mean(values[len(values) // 2 :])) if values else float("nan")
    return found
