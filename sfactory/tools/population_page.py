"""Render a population as one HTML page: lineage, the members' curves, their settings over time, and the winner.

All content comes from pbt.json (`sfactory.run.history`) and the members' run folders. The page itself is the template
population.html.j2 (`sfactory.tools.page`).
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.config.parsing import flag_name
from sfactory.errors import FileRefused
from sfactory.monitor.format import human
from sfactory.run.history import History, Record
from sfactory.run.reader import RunFolder, format_setting, format_value, read_run
from sfactory.tools import svg
from sfactory.tools.lineage import lineage
from sfactory.tools.page import Chart, Tile, legend, render, short

RETURN, EVALUATION = "charts/episodic_return", "eval/episodic_return"
WIDE_RANGE = 20.0
"""Largest over smallest value of a setting from which its axis is logarithmic."""


def population_page(folder: Path, history: History) -> str:
    """Return the page of a population as HTML."""
    return render("population.html.j2", content(folder, history))


def content(folder: Path, history: History) -> dict[str, Any]:
    """Return the variables of the template."""
    members = range(len(history.initial))
    runs = {member: run for member in members if (run := _read(folder / f"m{member}")) is not None}
    first = next(iter(runs.values()), None)
    winner = None if history.winner is None else shlex.quote(str(folder / f"m{history.winner}"))
    return {
        "name": folder.resolve().name,
        "env": first.config.env.name if first else "",
        "seed": history.options.get("seed", ""),
        "finished": history.finished,
        "winner": winner,
        "tiles": _tiles(history, runs),
        "lineage": Chart(
            "who took over whose policy",
            lineage(len(members), history.records),
            wide=True,
            narrow=lineage(len(members), history.records, svg.NARROW[0]),
        ),
        "curves": _curves(history, runs),
        "settings": _settings(history),
        "members": [_row(history, member, runs.get(member)) for member in members],
        "takeovers": [_takeover(record) for record in history.records if record.source is not None],
        "options": [
            (flag_name(name), format_value(value)) for name, value in history.options.items() if name != "settings"
        ],
    }


def _read(path: Path) -> RunFolder | None:
    with contextlib.suppress(ValueError, OSError, FileRefused):
        return read_run(path)
    return None


def _tiles(history: History, runs: Mapping[int, RunFolder]) -> list[Tile]:
    """The numbers in the header."""
    newest = history.newest()
    best = [record.score for record in newest.values() if record.score is not None]
    steps = sum(int(run.status.get("env_steps", 0)) for run in runs.values())
    taken = sum(record.source is not None for record in history.records)
    note = "" if history.winner is None else f"of m{history.winner}, the winner"
    return [
        Tile("best score", svg.number(max(best)) if best else "-", note),
        Tile("members", str(len(history.initial)), f"{len(runs)} have been started"),
        Tile("takeovers", str(taken), f"in {max((record.round for record in history.records), default=0)} rounds"),
        Tile("steps", short(float(steps)), "of all members together"),
    ]


def _curves(history: History, runs: Mapping[int, RunFolder]) -> list[Chart]:
    """Returns of every member over its own steps, and the scores that were compared."""
    charts = []
    for title, metric in (("training return", RETURN), ("evaluation", EVALUATION)):
        lines = {
            f"m{member}": (run.rows["env_steps"], run.column(metric))
            for member, run in runs.items()
            if np.isfinite(run.column(metric)).any()
        }
        charts += _chart(title, lines, wide=metric == RETURN)
    scores = {}
    for member in range(len(history.initial)):
        known = [record for record in history.of(member) if record.score is not None]
        if known:
            steps = np.array([record.env_steps for record in known], float)
            scores[f"m{member}"] = (steps, np.array([record.score for record in known], float))
    return charts + _chart("score at the end of each round", scores)


def _settings(history: History) -> list[Chart]:
    """One chart per numeric setting that differs between members."""
    charts = []
    for name in history.initial[0]:
        lines = {}
        for member, first in enumerate(history.initial):
            steps, values = [0.0], [first[name]]
            for record in history.of(member):
                steps += [float(record.env_steps), float(record.env_steps)]
                values += [record.settings[name], record.next_settings[name]]
            if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                lines[f"m{member}"] = (np.array(steps), np.array(values, float))
        charts += _chart(flag_name(name), lines, setting=True)
    return charts


def _chart(
    title: str, members: Mapping[str, tuple[np.ndarray, np.ndarray]], wide: bool = False, setting: bool = False
) -> list[Chart]:
    """One chart with a curve per member, each over its own steps; none without values.

    setting: values stay until the next one, and are drawn by their logarithms if they differ by a large factor.
    """
    known = {name: (x[np.isfinite(y)], y[np.isfinite(y)]) for name, (x, y) in members.items() if np.isfinite(y).any()}
    if not known:
        return []
    every = np.concatenate([y for _, y in known.values()])
    uses_logs = setting and every.min() > 0 and every.max() / every.min() >= WIDE_RANGE
    at = np.concatenate([x for x, _ in known.values()])
    axis = np.unique(np.concatenate([at, np.nextafter(at[at > 0], 0)]) if setting else at)  # just before a change, too
    curves = []
    for name, (x, y) in known.items():
        here = np.log10(y) if uses_logs else y
        curves.append(svg.Line(name, _on_axis(axis, x, here, steps=setting)))
    y_format = (lambda value: svg.number(10.0**value)) if uses_logs else svg.number
    sizes = (svg.WIDE, svg.NARROW) if wide else (svg.SMALL,)
    drawing, *narrow = (svg.lines(axis, curves, human, y_format, size, zero=not uses_logs) for size in sizes)
    newest = [float(y[-1]) for _, y in known.values()]
    return [Chart(title, drawing, legend(list(known), newest), wide, "".join(narrow))]


def _on_axis(axis: np.ndarray, x: np.ndarray, y: np.ndarray, steps: bool) -> np.ndarray:
    """Values of a curve on a common axis; NaN beyond its ends. steps: the value stays until the next one."""
    if steps:
        places = np.searchsorted(x, axis, side="right") - 1
        values = y[np.clip(places, 0, len(y) - 1)]
    else:
        values = np.interp(axis, x, y)
    return np.where((axis >= x[0]) & (axis <= x[-1]), values, np.nan)


def _row(history: History, member: int, run: RunFolder | None) -> tuple[str, ...]:
    """A member in the table: name, state, steps, score, settings, the last takeover."""
    own = history.of(member)
    taken = [record for record in own if record.source is not None]
    settings = own[-1].settings if own else history.initial[member]
    return (
        f"m{member}",
        run.state if run else "not started",
        f"{int(run.status.get('env_steps', 0)):,}" if run else "0",
        "-" if not own or own[-1].score is None else svg.number(own[-1].score),
        ", ".join(format_setting(name, value) for name, value in settings.items()),
        f"m{taken[-1].source} after round {taken[-1].round}" if taken else "",
    )


def _takeover(record: Record) -> tuple[str, ...]:
    """A takeover in the table."""
    changes = [
        f"{flag_name(name)} {format_value(record.settings[name])} to {format_value(value)}"
        for name, value in record.next_settings.items()
        if value != record.settings[name]
    ]
    score = "failed" if record.failed else "-" if record.score is None else svg.number(record.score)
    return (
        str(record.round),
        f"m{record.member}",
        f"{record.env_steps:,}",
        score,
        f"m{record.source} at {record.source_steps:,}",
        ", ".join(changes) or "none",
    )
