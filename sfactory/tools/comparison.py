"""Group runs, cut them to a common length and compute scores with intervals. No output: see compare, compare_plot.

Runs whose settings differ only in the seed form one group, labeled by the settings that differ between groups. Every
task is a panel of its own. Curves and scores are read where the shortest run of the panel ends: a longer run would win
by its length. Scores under different protocols are refused. Statistics: `sfactory.monitor.statistics`.

A score is the value of one metric at that point, by default the training return: the mean of the last 100 episodes.
Shapes: n runs of a group, P points.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfactory.config.values import same
from sfactory.errors import did_you_mean
from sfactory.monitor.format import step_words
from sfactory.monitor.statistics import bootstrap, improvement_interval, iqm, iqm_curve, probability_of_improvement
from sfactory.monitor.table import EPISODES_IN_MEAN, meaning
from sfactory.run.reader import RunFolder, expand_folders, read_run
from sfactory.tools.comparison_notes import Notes
from sfactory.tools.group_labels import given_labels, labels_of

NUM_POINTS = 120  # of a curve
MIN_RUNS = 5  # of a group; with fewer, bootstrap intervals are too narrow
WORTH_A_NOTE = 1.02  # how much later a run ends or begins than others, of which a note tells
AXES = ("env_steps", "seconds")
UNITS = {"env_steps": "steps", "seconds": "s"}
RETURN, HUMAN = "charts/episodic_return", "charts/human_normalized"
QUANTITIES = {RETURN: "training return", HUMAN: "human-normalized return"}
EVALUATED = "eval/env_steps"
SCORES = (RETURN, f"{RETURN}_min", f"{RETURN}_max", HUMAN, "eval/episodic_return", "eval/iqm", "eval/min", "eval/max",
          "selfplay/score", "selfplay/elo")  # fmt: skip
"""Metrics of which more is better, also of one task, so that a higher value is an improvement."""
GAMES = "charts/games"


class Improvement(NamedTuple):
    """Probability of improvement with its 95 % interval."""

    probability: float
    low: float | None
    """None: there is no interval."""
    high: float | None


@dataclass(frozen=True)
class RunGroup:
    """Runs of one task with the same settings. [n] and [n, P] in the order of `runs`."""

    label: str
    runs: tuple[RunFolder, ...]
    scores: np.ndarray
    """[n] at the end of the panel."""
    other: float
    """Median over runs of the other axis at the end of the panel: seconds if compared by env_steps, else steps."""
    curves: dict[str, np.ndarray]
    """Axis -> [n, P]; NaN before the first value of a run."""

    def as_dict(self) -> dict[str, Any]:
        """Return the scores and their statistics, for --json and the table."""
        low, high = bootstrap([self.scores], iqm)
        return {
            "label": self.label, "runs": [str(run.path) for run in self.runs], "scores": self.scores.tolist(),
            "iqm": float(iqm(self.scores)), "interval": [low, high] if len(self.scores) > 1 else None,
            "median": float(np.median(self.scores)), "min": float(self.scores.min()), "max": float(self.scores.max()),
        }  # fmt: skip


@dataclass(frozen=True)
class ComparisonPanel:
    """The groups of one task, or of all tasks on the human-normalized scale."""

    title: str
    quantity: str
    by: str
    end: float
    """Position on the axis `by` at which scores are read."""
    grids: dict[str, np.ndarray]
    """Axis -> [P]."""
    groups: tuple[tuple[str, tuple[RunGroup, ...]], ...]
    """(label, groups): one group, or one per task in the panel of all tasks."""
    metric: str = RETURN
    """Name of what is compared, as in metrics.jsonl."""

    @property
    def is_score(self) -> bool:
        """Whether more is better."""
        return any(self.metric == name or self.metric.startswith(f"{name}/") for name in SCORES)

    @property
    def meaning(self) -> str:
        """What the quantity is; empty for a metric of another version."""
        if self.metric in QUANTITIES:
            return "mean of the last 100 episodes"
        try:
            return meaning(self.metric)
        except KeyError:
            return ""

    @property
    def steps(self) -> str:
        """What env_steps of these runs count, for text."""
        runs = (run for _, strata in self.groups for group in strata for run in group.runs)
        return next((words for run in runs if (words := step_words(run.rows)[0]) != "steps"), "steps")

    def bands(self, axis: str) -> dict[str, np.ndarray]:
        """Return label -> [3, P]: the IQM and the ends of its interval; NaN where a run of the group has no value."""
        return {label: _band([g.curves[axis] for g in strata]) for label, strata in self.groups}

    def improvement(self, label: str) -> Improvement | None:
        """Return the probability of improvement over the first group and its interval; None for the first group.

        It is the probability that a random run of `label` scores higher than a random run of the first group. There is
        no interval if one of the two groups is a single run of each task: resampling one run always gives that run.
        """
        groups = dict(self.groups)
        first = next(iter(groups))
        if label == first:
            return None
        scores, baseline = ([g.scores for g in groups[name]] for name in (label, first))
        several = all(max(map(len, strata)) > 1 for strata in (scores, baseline))
        low, high = improvement_interval(scores, baseline) if several else (None, None)
        return Improvement(probability_of_improvement(scores, baseline), low, high)

    def row(self, label: str) -> dict[str, Any]:
        """Return the statistics of a group, for --json and the table."""
        strata = dict(self.groups)[label]
        row = strata[0].as_dict()
        if len(strata) > 1:
            scores = [group.scores for group in strata]
            together = np.concatenate(scores)
            row |= {
                "runs": [str(run.path) for group in strata for run in group.runs], "scores": together.tolist(),
                "iqm": float(iqm(together)), "median": float(np.median(together)),
                "interval": list(bootstrap(scores, iqm)) if max(map(len, scores)) > 1 else None,
                "min": float(together.min()), "max": float(together.max()),
            }  # fmt: skip
        row["label"] = label
        if len(strata) == 1:
            row[UNITS[AXES[1 - AXES.index(self.by)]]] = strata[0].other
        row["improvement"] = self.improvement(label)
        return row


@dataclass(frozen=True)
class Comparison:
    """All panels, and notes about runs that were left out or cut."""

    panels: tuple[ComparisonPanel, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for --json."""
        panels = []
        for panel in self.panels:
            curves = {
                axis: {"x": panel.grids[axis].tolist(), **{n: _json(b) for n, b in panel.bands(axis).items()}}
                for axis in panel.grids
            }
            groups = [panel.row(label) for label, _ in panel.groups]
            panels.append({
                "title": panel.title, "quantity": panel.quantity, "metric": panel.metric, "by": panel.by,
                "at": panel.end,
                "groups": groups, "curves": curves,
            })  # fmt: skip
        return {"panels": panels, "notes": list(self.notes)}


def position(value: float, axis: str) -> str:
    """A place on an axis with its unit; seconds with the digits that show a difference of WORTH_A_NOTE."""
    digits = 0 if axis == "env_steps" or value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {UNITS[axis]}"


def _band(curves: Sequence[np.ndarray]) -> np.ndarray:
    known = np.all([np.isfinite(curve).all(axis=0) for curve in curves], axis=0)
    band = np.full((3, len(known)), np.nan)
    if known.any():
        band[:, known] = iqm_curve([curve[:, known] for curve in curves])
    return band


def _json(band: np.ndarray) -> list[list[float | None]]:
    """A band as JSON can hold it: it has no NaN."""
    return [[value if np.isfinite(value) else None for value in row] for row in band.tolist()]


def compare(
    paths: Sequence[Path], by: str = "env_steps", metric: str = RETURN, labels: Sequence[str] = ()
) -> Comparison:
    """Read the runs and compare them. Raises ValueError, naming the run, if they cannot be compared.

    by: env_steps or seconds. metric: what is compared, a name in the rows of metrics. labels: names of the groups, in
    the order in which these appear; empty: by their settings or folders.
    """
    notes = Notes()
    runs = _usable(expand_folders(list(paths)), metric, notes)
    tasks = list(dict.fromkeys(task for run in runs for task in _tasks(run, metric)))
    names = _names(tasks, runs, metric, labels)
    panels = []
    for task in tasks:
        _one_protocol(task, [run for run in runs if task in _tasks(run, metric)])
        panels.append(_panel(task, runs, by, metric, notes, names))
    if len(tasks) > 1 and metric == RETURN:
        if not all(_has_scale(task, runs) for task in tasks):
            notes.add("Scores of tasks with different scales are not averaged: each task has its own table.")
        elif (together := _all_tasks(tasks, runs, by, names)) is not None:
            panels.append(together)
        else:
            notes.add("No group has runs of every task, so no table is of all tasks: each task has its own.")
    return Comparison(tuple(panels), notes.lines())


def _names(tasks: Sequence[str], runs: Sequence[RunFolder], metric: str, labels: Sequence[str]) -> dict[str, str]:
    """Label of a group by its settings or folders -> label of the user, in the order of the tables."""
    if not labels:
        return {}
    groups = [_grouped([run for run in runs if task in _tasks(run, metric)]) for task in tasks]
    return given_labels(list(dict.fromkeys(label for each in groups for label in labels_of(each)[0])), labels)


# -- what is compared ----------------------------------------------------------------------------------------


def _usable(paths: list[Path], metric: str, notes: Notes) -> list[RunFolder]:
    """Return the runs that have the metric; add notes about the others and about unfinished runs."""
    if not paths:
        raise ValueError("there is no folder of a run to compare")
    runs, known, what = list[RunFolder](), set[str](), QUANTITIES.get(metric, metric)
    for path in paths:
        if path.exists() and not (path / "config.toml").is_file():
            notes.of(str(path), " contains no run; it is left out.", " contain no run; they are left out.")
            continue
        run = read_run(path)
        known |= {name for name in run.rows if np.isfinite(run.column(name)).any()} - set(AXES)
        if run.unreadable_lines:
            lines = "1 line" if run.unreadable_lines == 1 else f"{run.unreadable_lines} lines"
            notes.add(f"{path}: {lines} of metrics.jsonl left out (unreadable).")
        if not all(len(_curve(run, task, metric, "env_steps")[1]) for task in _tasks(run, metric)):
            notes.of(str(path), f" has no {what} yet; it is left out.", f" have no {what} yet; they are left out.")
            continue
        if run.state == "running":
            rest = " still running; the comparison uses "
            notes.of(str(path), f" is{rest}its rows so far.", f" are{rest}their rows so far.")
        elif run.state != "finished":
            rest = f" did not finish ({run.state}); the comparison uses the rows "
            notes.of(str(path), f"{rest}it has.", f"{rest}they have.")
        runs.append(run)
    if not runs:
        if known and metric not in known:
            hint = did_you_mean(metric, known) or _hint(metric)
            raise ValueError(f"metric {metric}: no row of these runs has it{hint}")
        why = f"; {notes.lines()[0].rstrip('.')}" if notes.lines() else ""
        raise ValueError(f"none of the {len(paths)} folders contains a run with a {what}{why}")
    return runs


def _hint(metric: str) -> str:
    """What makes a run have a metric, where a setting does."""
    if metric.startswith("eval/"):
        return "; a run evaluates its policy with eval.every"
    return "; docs/metrics.md lists all names"


def _tasks(run: RunFolder, metric: str) -> tuple[str, ...]:
    """The tasks of which a run has the metric; all together as one name if there is one value for all of them."""
    tasks = run.config.env.tasks
    if metric in (RETURN, HUMAN) or len(tasks) == 1 or f"{metric}/{tasks[0]}" in run.rows:
        return tasks
    return (", ".join(tasks),)


def _one_protocol(task: str, runs: Sequence[RunFolder]) -> None:
    """Raise ValueError if the runs of a task were trained under different protocols."""
    if all(run.protocol and run.config.env.tasks == (task,) for run in runs):
        protocols = {id(run): run.protocol for run in runs}
    else:
        protocols = _protocols(runs)
    first = runs[0]
    for run in runs:
        if protocols[id(run)] != protocols[id(first)]:
            raise ValueError(
                f"{run.path} was trained on {task} under another protocol than {first.path}: {protocols[id(run)]} "
                f"is not {protocols[id(first)]}; scores under different protocols cannot be compared"
            )


def _protocols(runs: Sequence[RunFolder]) -> dict[int, str]:
    """Return id of a run -> its settings of the environment, where not every run has recorded its protocol.

    The environment is not built to ask it: a run folder may be a stranger's, and its code is not run.
    """
    options = ((run, replace(run.config.env.options, info_keys=())) for run in runs)  # these change no episode
    return {id(run): json.dumps(env.as_dict(), sort_keys=True, default=str) for run, env in options}


def _curve(run: RunFolder, task: str, metric: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (positions, values) of a metric without the rows that have no value."""
    of_task = len(run.config.env.tasks) > 1 and task in run.config.env.tasks
    values, positions = run.column(f"{metric}/{task}" if of_task else metric), run.column(axis)
    if axis == "env_steps" and metric.startswith("eval/"):  # the steps of the policy that was evaluated
        positions = np.where(np.isfinite(run.column(EVALUATED)), run.column(EVALUATED), positions)
    known = np.isfinite(values) & np.isfinite(positions)
    positions, values = positions[known], values[known]
    order = np.argsort(positions, kind="stable")
    return positions[order], values[order]


def _panel(
    task: str, runs: Sequence[RunFolder], by: str, metric: str, notes: Notes, names: dict[str, str]
) -> ComparisonPanel:
    """Return the panel of one task: runs cut where the shortest one ends, grouped and labeled. names: see `_names`."""
    runs = [run for run in runs if task in _tasks(run, metric)]
    together = _grouped(runs)
    ends = {axis: [_curve(run, task, metric, axis)[0][-1] for run in runs] for axis in AXES}
    grids = {axis: _grid(together, task, metric, axis) for axis in AXES}
    shortest, longest = int(np.argmin(ends[by])), int(np.argmax(ends[by]))
    if ends[by][longest] > WORTH_A_NOTE * ends[by][shortest]:
        notes.add(
            f"{task}: compared at {position(ends[by][shortest], by)}, where {runs[shortest].path} ends; the longest "
            f"run is {runs[longest].path} with {position(ends[by][longest], by)}."
        )
    other = AXES[1 - AXES.index(by)]
    groups = []
    labels, differ = labels_of(together)
    if differ and not names:
        notes.add(
            f"The settings differ in {len(differ)} places, so groups have the names of their folders; --labels A,B,... "
            "names them otherwise."
        )
    for label, members in zip([names.get(label, label) for label in labels], together, strict=True):
        seeds = [run.config.run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            rest = ": several runs have the same seed; they are treated as independent."
            notes.of(label or task, rest, rest)
        curves = {axis: np.stack([_at(grids[axis], run, task, metric, axis) for run in members]) for axis in AXES}
        others = [np.interp(grids[by][-1], run.column(by), run.column(other)) for run in members]
        scores = [np.interp(grids[by][-1], *_curve(run, task, metric, by)) for run in members]
        group = RunGroup(label, tuple(members), np.array(scores), float(np.median(others)), curves)
        groups.append((label, (group,)))
        for run in members:
            _note_score(run, task, by, metric, float(grids[by][-1]), notes)
        if len(members) == 1:
            rest = "no interval; train more seeds."
            notes.of(label or task, f": a single run has {rest}", f": single runs have {rest}")
        elif len(members) < MIN_RUNS:
            notes.add(f"Groups of fewer than {MIN_RUNS} runs: true intervals are wider than the bootstrap intervals.")
    quantity = QUANTITIES.get(metric, metric)
    return ComparisonPanel(task, quantity, by, float(grids[by][-1]), grids, tuple(groups), metric)


def _note_score(run: RunFolder, task: str, by: str, metric: str, end: float, notes: Notes) -> None:
    """Say where the score of a run at `end` is something else than the heading of its table says."""
    first = _curve(run, task, metric, by)[0][0]
    if first > WORTH_A_NOTE * end:
        rest = f" no value at {position(end, by)} yet; the first one, which came later, is used."
        notes.of(str(run.path), f" has{rest}", f" have{rest}")
    games = run.column(GAMES)[run.column(by) <= max(first, end)]
    games = games[np.isfinite(games)]  # evaluations may have rows of their own
    if metric == RETURN and len(games) and games[-1] < EPISODES_IN_MEAN:
        rest = f" fewer than {EPISODES_IN_MEAN} complete episodes there; the return is the mean of all of them."
        notes.of(str(run.path), f" has{rest}", f" have{rest}")


def _grid(groups: Sequence[Sequence[RunFolder]], task: str, metric: str, axis: str) -> np.ndarray:
    """[P] positions from where the first group has a value of each of its runs, to where the shortest run ends."""
    curves = [[_curve(run, task, metric, axis)[0] for run in members] for members in groups]
    end = min(x[-1] for members in curves for x in members)
    start = min(max(x[0] for x in members) for members in curves)
    return np.linspace(min(start, end), end, NUM_POINTS)


def _at(grid: np.ndarray, run: RunFolder, task: str, metric: str, axis: str) -> np.ndarray:
    """[P] values of a run between its rows. NaN before the first one, except at the end, where scores are read."""
    x, y = _curve(run, task, metric, axis)
    values: np.ndarray = np.interp(grid, x, y, left=np.nan)
    values[-1] = np.interp(grid[-1], x, y)
    return values


def _grouped(runs: Sequence[RunFolder]) -> list[list[RunFolder]]:
    """Return the runs by their settings, in the given order."""
    settings: list[dict[str, Any]] = []
    together: list[list[RunFolder]] = []
    for run in runs:
        own = run.settings()
        at = next((n for n, other in enumerate(settings) if own == other or same(own, other)), len(settings))
        if at == len(settings):
            settings.append(own)
            together.append([])
        together[at].append(run)
    return together


def _has_scale(task: str, runs: Sequence[RunFolder]) -> bool:
    """Whether all runs of a task have returns on the scale 0 = random policy, 1 = human tester."""
    return all(len(_curve(run, task, HUMAN, "env_steps")[0]) for run in runs if task in run.config.env.tasks)


def _all_tasks(
    tasks: Sequence[str], runs: Sequence[RunFolder], by: str, names: dict[str, str]
) -> ComparisonPanel | None:
    """Return the panel of all tasks on the human scale; None if no group has runs of every task.

    Groups of different tasks are matched by label. The axis is in fractions of each task's own length.
    """
    panels = [_panel(task, runs, by, HUMAN, Notes(), names) for task in tasks]
    common = [label for label, _ in panels[0].groups if all(label in dict(panel.groups) for panel in panels)]
    if not common:
        return None
    groups = tuple((label, tuple(dict(panel.groups)[label][0] for panel in panels)) for label in common)
    end = float(np.median([panel.end for panel in panels]))
    grids = {axis: np.median([panel.grids[axis] for panel in panels], axis=0) for axis in AXES}
    return ComparisonPanel(f"all {len(tasks)} tasks", QUANTITIES[HUMAN], by, end, grids, groups, HUMAN)
