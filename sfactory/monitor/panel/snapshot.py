"""What the panel shows."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sfactory.monitor.metrics import STAGES, Stop, console_line

POINTS = 512  # of the return's history; beyond, every second one is dropped

Point = tuple[float, float, float]
"""env_steps, seconds of training, training return."""


class Rules(Stop, Protocol):
    """All stop rules of a run; `config.Stop` is one."""

    @property
    def target_return(self) -> float | None: ...


@dataclass(frozen=True)
class Snapshot:
    """What the panel shows: the newest row of metrics and what surrounds it."""

    row: Mapping[str, float | None]
    """Metrics by their names, as in metrics.jsonl; empty before the first row."""
    env_steps: int
    seconds: float
    """Of training, over all launches."""
    stop: Rules
    name: str
    """Of the run's folder."""
    env: str
    protocol: str = ""
    mode: str = ""
    device: str = ""
    history: tuple[Point, ...] = ()
    checkpoint: tuple[int, float] | None = None
    """Steps of the last one, and its age in seconds."""
    faults: tuple[str, ...] = ()
    """The last ones, oldest first."""
    roofline: float | None = None
    """Steps per second this machine could reach at best, where that is known."""
    slots: int = 0
    """Slots of all groups."""
    since: float = 0.0
    """Seconds since the row was made."""
    state: str = "running"
    """Or how the run ended."""

    def value(self, name: str) -> float | None:
        """A metric, if it is there and finite."""
        value = self.row.get(name)
        return value if value is not None and np.isfinite(value) else None

    @property
    def numbers(self) -> dict[str, float]:
        """The row without what is missing or not finite."""
        return {name: value for name, value in self.row.items() if value is not None and np.isfinite(value)}

    @property
    def line(self) -> str:
        """The same in one line, for whoever has no terminal."""
        return console_line(self.numbers, self.stop, self.env_steps, self.seconds)


@dataclass
class History:
    """The training return so far, in at most POINTS points however long a run is."""

    points: list[Point] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def read(self, lines: Iterable[str], newest: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Lines of a metrics.jsonl, those that are whole; returns the newest row after `newest`, as panels show it."""
        shown = dict(newest or {})
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self.add(row["env_steps"], row["seconds"], row)
                shown = carried(shown, row)
        return shown

    def add(self, env_steps: float, seconds: float, row: Mapping[str, Any]) -> None:
        """One row; it counts if it holds a return."""
        value = row.get("charts/episodic_return")
        if value is None or not np.isfinite(value):
            return
        if self._seen % self._every == 0:
            self.points.append((float(env_steps), float(seconds), float(value)))
        self._seen += 1
        if len(self.points) > POINTS:
            self.points, self._every = self.points[::2], 2 * self._every


def trend(history: Sequence[Point]) -> tuple[float, float] | None:
    """(change of the return, seconds it took) over the last quarter, by a straight line; None before five points.

    A change below 1 % of all the return has moved is called none.
    """
    recent = np.array(history[-max(5, len(history) // 4) :])
    if len(recent) < 5 or recent[-1, 1] <= recent[0, 1]:
        return None
    seconds, values = recent[:, 1] - recent[0, 1], recent[:, 2]
    change = float(np.polyfit(seconds, values, 1)[0] * seconds[-1])
    moved = max(point[2] for point in history) - min(point[2] for point in history)
    return (change if 0 < 0.01 * moved < abs(change) else 0.0), float(seconds[-1])


def carried(before: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, with the times a kind of worker told last where it told none since: times come once a second."""
    silent = [kind for kind in STAGES if not any(name.startswith(f"stage/{kind}/") for name in row)]
    names = tuple(name for kind in silent for name in (f"stage/{kind}/", f"queue/{kind}_"))
    return {**{name: value for name, value in before.items() if name.startswith(names)}, **row}
