"""Keep the learning curves of finished runs in one file, so that a grid needs no folder of runs to go on.

The file is a table (CSV) with a row per finished run: what was run (cell, seed, target, steps, flags), where and when
(processor, commit, date), and its training return over the run in `BLOCKS` equal parts. It is kept in the repository as
the raw data of the tables and pictures. A row counts only for a run with the same flags, and as long as the settings
that these and the preset give are those it was measured with (`fingerprint`; rows of before have none and count as they
are). Of several rows for a run the last one counts, so nothing needs to be deleted.
"""

from __future__ import annotations

import base64
import csv
import datetime
import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sfactory.config import Config
from sfactory.device.machine import processor
from sfactory.files import replace_text
from sfactory.monitor.rows import read_rows
from sfactory.run import provenance
from sfactory.run.reader import learning_settings

POINTS = 100  # learning curves are read at this many equally spaced env steps
BLOCKS = 20  # and kept as means over equal parts
RETURN = "charts/episodic_return"
EXTRA = ("offpolicy/ess", "losses/clipfrac", "offpolicy/effective_lambda", "losses/entropy")
SETTINGS = "settings"
FIELDS = ("cell", "seed", "target", "steps", "flags", "seconds", "processor", "commit", "date", *EXTRA, "curve")
"""Columns of every row. SETTINGS follows at the end: rows of before, which lack it, stay readable in the same file."""
PART = 2  # bytes of a setting in a fingerprint


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
        self.path, self.fields = path, (*FIELDS[:-1], *columns, FIELDS[-1], SETTINGS)
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
        settings: str = "",
    ) -> Curve:
        """Read the curve of a finished run from its folder, and write its row at the end of the file at once.

        columns: values of this file's own columns. settings: the fingerprint of what it was measured with.
        """
        values = curve(folder, steps, self.metric(target)).reshape(BLOCKS, -1).mean(1)
        row = {
            "cell": cell, "seed": str(seed), "target": target, "steps": str(steps), "flags": " ".join(flags),
            "seconds": f"{seconds:.1f}", "processor": processor(), "commit": commit_of(folder),
            "date": datetime.date.today().isoformat(), **columns,
            **{name: f"{x:.4g}" for name, x in _late(folder).items()},
            "curve": " ".join(f"{x:.5g}" for x in values), SETTINGS: settings,
        }  # fmt: skip
        new = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not new:
            self._add_column()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        return self._read(row)  # rounded, so that a page written now is that of a later command

    def _add_column(self) -> None:
        """Name the column of settings in a file of before; its rows stay as they are."""
        head, newline, rows = self.path.read_text().partition("\n")
        if SETTINGS not in head.split(","):
            replace_text(self.path, f"{head},{SETTINGS}{newline}{rows}")


LENGTH = "stop.env_steps"
"""A fingerprint has it only where something follows a line that ends there. So a setting that makes a value follow one
brings it in, although the length, which is in the key of every row, has not changed."""


def fingerprint(config: Config) -> str:
    """Text in which `changed_settings` finds the settings that decide what is learned; two bytes for each.

    A digest of all would be another one with every setting that is added to sfactory.
    """
    return base64.b64encode(b"".join(sorted(_parts(config).values()))).decode()


def changed_settings(settings: str, config: Config) -> list[str]:
    """Names of the settings that are no longer as in a fingerprint; empty if all are, or if there is none.

    A setting that did not exist then has not changed as long as it has its default. Two values may have the same bytes:
    of 65,536 changes of one setting, about 150 are not noticed.
    """
    if not settings:
        return []
    kept = base64.b64decode(settings)
    then = {kept[at : at + PART] for at in range(0, len(kept), PART)}
    now, usual = _parts(config), _parts(Config())
    new = [name for name, part in now.items() if part not in then]
    changed = [name for name in new if now[name] != usual.get(name)]
    changed = [name for name in changed if name != LENGTH] or changed
    return changed or ([] if then <= set(now.values()) else new or ["a setting that no longer exists"])


def _parts(config: Config) -> dict[str, bytes]:
    """Name of a setting -> bytes that depend on its name and value."""
    values = {**learning_settings(config), "env.protocol": config.env.protocol}
    texts = {name: json.dumps([name, value], sort_keys=True, default=str) for name, value in values.items()}
    return {name: hashlib.sha256(text.encode()).digest()[:PART] for name, text in texts.items()}


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


def commit_of(folder: Path) -> str:
    """The commit that a run was trained with last, as its provenance says; else as `commit`."""
    launches = provenance.read(folder)
    trained = str((launches[-1].get("git") or {}).get("commit", "")) if launches else ""
    now = commit()
    same = bool(now) and trained.startswith(now.rstrip("+"))
    return now if same or not trained else trained[:7]


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
