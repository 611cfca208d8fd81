"""The metrics of a run as curves, for Python: `outcome.history["charts/episodic_return"]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sfactory.config.parsing import shown
from sfactory.errors import suggest
from sfactory.monitor.rows import METRICS_FILE
from sfactory.run.reader import read_columns

AXES = {"env_steps": "steps", "seconds": "seconds"}
"""Column that is no metric -> its attribute."""
MOST_NAMES = 8
"""Names of metrics that a repr lists."""


class Curve(NamedTuple):
    """One metric of a run, [n] and [n]: only the rows that have a value of it. `plot(*curve)` draws it."""

    steps: np.ndarray
    """Trained steps, increasing."""
    values: np.ndarray


class History(Mapping[str, Curve]):
    """The metrics of a run by name, as `dict`: name -> Curve. docs/metrics.md defines the names.

    table: name -> [rows], also `env_steps` and `seconds`; NaN where a row has no value. `pandas.DataFrame(h.table)`.
    """

    def __init__(self, table: Mapping[str, np.ndarray]) -> None:
        self.table = dict(table)

    @property
    def steps(self) -> np.ndarray:
        """Trained steps, [rows]."""
        return self.table["env_steps"]

    @property
    def seconds(self) -> np.ndarray:
        """Seconds of training over all launches, [rows]."""
        return self.table["seconds"]

    def __getitem__(self, name: str) -> Curve:
        if isinstance(name, str) and name in AXES:
            raise KeyError(f"{name}: no such metric; it is history.{AXES[name]}, and history.table[{name!r}]")
        if not isinstance(name, str):
            raise KeyError(f"{shown(name)}: expected the name of one metric; history.table has several")
        if name not in self.table:
            raise KeyError(f"{name}: no such metric in this run{suggest(name, list(self))}")
        known = np.isfinite(self.table[name])
        return Curve(self.steps[known], self.table[name][known])

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.table if name not in AXES)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        names = sorted(self)
        listed = ", ".join(names[:MOST_NAMES]) + (f", ... ({len(names)} in all)" if len(names) > MOST_NAMES else "")
        last = int(self.steps[-1]) if len(self.steps) else 0
        return f"<History of {len(self.steps)} rows to {last:,} steps: {listed or 'no metrics'}>"


def read_history(run_dir: Path) -> History:
    """The metrics of a run. ValueError if there is no such folder, FileRefused if its file is a link."""
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} does not exist")
    rows, _ = read_columns(run_dir / METRICS_FILE)
    return History(rows)
