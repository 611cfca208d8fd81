"""Data of the panel: the newest row of metrics, the run's settings, and the history of its return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sfactory.config import Stop
from sfactory.monitor.format import console_line
from sfactory.monitor.rows import Row
from sfactory.monitor.table import STAGES

MAX_POINTS = 512  # of the return's history; beyond, every second point is dropped

Point = tuple[float, float, float]
"""env_steps, seconds of training, training return."""


@dataclass(frozen=True)
class Snapshot:
    """Everything one picture of the panel needs."""

    row: Mapping[str, float | None]
    """Metric -> value, as in metrics.jsonl; empty before the first row."""
    env_steps: int
    seconds: float
    """Of training, over all launches."""
    stop: Stop
    name: str
    """Name of the run folder."""
    env: str
    protocol: str = ""
    mode: str = ""
    device: str = ""
    history: tuple[Point, ...] = ()
    checkpoint: tuple[int, float] | None = None
    """env_steps of the last checkpoint, and its age in seconds."""
    faults: tuple[str, ...] = ()
    """The last faults, oldest first."""
    roofline: float | None = None
    """Highest speed this machine can reach, in steps per second, where it is known."""
    slots: int = 0
    """Slots of all groups."""
    since: float = 0.0
    """Seconds since the row was made."""
    state: str = "running"
    """Or the outcome of the run."""

    def value(self, name: str) -> float | None:
        """Value of a metric; None if it is missing or not finite."""
        value = self.row.get(name)
        return value if value is not None and np.isfinite(value) else None

    @property
    def numbers(self) -> dict[str, float]:
        """The row without missing and non-finite values."""
        return {name: value for name, value in self.row.items() if value is not None and np.isfinite(value)}

    @property
    def line(self) -> str:
        """The same in one line, where there is no terminal."""
        return console_line(self.numbers, self.stop, self.env_steps, self.seconds)


@dataclass
class ReturnHistory:
    """The training return so far, in at most MAX_POINTS points."""

    points: list[Point] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def add_rows(self, rows: Iterable[Row], newest: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Add rows of metrics.jsonl; returns the last one, completed from those before by `keep_stage_times`."""
        row_shown = dict(newest or {})
        for row in rows:
            if isinstance(row.get("seconds"), int | float):
                self.add(row["env_steps"], row["seconds"], row)
                alone = "charts/updates" not in row  # a row of an evaluation: the numbers of training stay
                row_shown = {**row_shown, **row} if alone else keep_stage_times(row_shown, row)
        return row_shown

    def add(self, env_steps: float, seconds: float, row: Mapping[str, Any]) -> None:
        """Add one row, if it has a return."""
        value = row.get("charts/episodic_return")
        if value is None or not np.isfinite(value):
            return
        if self._seen % self._every == 0:
            self.points.append((float(env_steps), float(seconds), float(value)))
        self._seen += 1
        if len(self.points) > MAX_POINTS:
            self.points, self._every = self.points[::2], 2 * self._every


def return_trend(history: Sequence[Point]) -> tuple[float, float] | None:
    """(change of the return, its duration in seconds) over the last quarter; None before five points.

    Slope of a fitted straight line. A change below 1 % of the range of all returns counts as 0.
    """
    recent = np.array(history[-max(5, len(history) // 4) :])
    if len(recent) < 5 or recent[-1, 1] <= recent[0, 1]:
        return None
    seconds, values = recent[:, 1] - recent[0, 1], recent[:, 2]
    change = float(np.polyfit(seconds, values, 1)[0] * seconds[-1])
    value_range = max(point[2] for point in history) - min(point[2] for point in history)
    return (change if 0 < 0.01 * value_range < abs(change) else 0.0), float(seconds[-1])


def keep_stage_times(before: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, with the previous stage times of workers that have sent none since: they send them once a second."""
    missing = [kind for kind in STAGES if not any(name.startswith(f"stage/{kind}/") for name in row)]
    prefixes = tuple(prefix for kind in missing for prefix in (f"stage/{kind}/", f"queue/{kind}_"))
    return {**{name: value for name, value in before.items() if name.startswith(prefixes)}, **row}
