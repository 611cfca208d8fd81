"""Group runs, cut them to a common length and compute scores with intervals. No output: see compare, compare_plot.

Runs whose settings differ only in the seed form one group, labeled by the settings that differ between groups. Every
task is a panel of its own. Curves and scores are read where the shortest run of the panel ends: a longer run would win
by its length. Scores under different protocols are refused. Statistics: `sfactory.monitor.statistics`.

A score is the training return at that point: the mean of the last 100 episodes. Shapes: n runs of a group, P points.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.config.values import same
from sfactory.monitor.format import step_words
from sfactory.monitor.statistics import bootstrap, improvement_interval, iqm, iqm_curve, probability_of_improvement
from sfactory.run.reader import RunFolder, expand_folders, format_setting, read_run

NUM_POINTS = 120  # of a curve
MIN_RUNS = 5  # of a group; with fewer, bootstrap intervals are too narrow
AXES = ("env_steps", "seconds")
UNITS = {"env_steps": "steps", "seconds": "s"}
RETURN, HUMAN = "charts/episodic_return", "charts/human_normalized"


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
    """Axis -> [n, P]."""

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

    @property
    def steps(self) -> str:
        """What env_steps of these runs count, for text."""
        runs = (run for _, strata in self.groups for group in strata for run in group.runs)
        return next((words for run in runs if (words := step_words(run.rows)[0]) != "steps"), "steps")

    def bands(self, axis: str) -> dict[str, np.ndarray]:
        """Return label -> [3, P]: the IQM and the ends of its interval."""
        return {label: iqm_curve([g.curves[axis] for g in strata]) for label, strata in self.groups}

    def improvement(self, label: str) -> tuple[float, float, float] | None:
        """Return the probability of improvement over the first group and its interval; None for the first group.

        It is the probability that a random run of `label` scores higher than a random run of the first group.
        """
        groups = dict(self.groups)
        first = next(iter(groups))
        if label == first:
            return None
        scores, baseline = ([g.scores for g in groups[name]] for name in (label, first))
        return probability_of_improvement(scores, baseline), *improvement_interval(scores, baseline)

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
                axis: {"x": panel.grids[axis].tolist(), **{n: b.tolist() for n, b in panel.bands(axis).items()}}
                for axis in panel.grids
            }
            groups = [panel.row(label) for label, _ in panel.groups]
            panels.append({
                "title": panel.title, "quantity": panel.quantity, "by": panel.by, "at": panel.end,
                "groups": groups, "curves": curves,
            })  # fmt: skip
        return {"panels": panels, "notes": list(self.notes)}


def compare(paths: Sequence[Path], by: str = "env_steps") -> Comparison:
    """Read the runs and compare them. Raises ValueError, naming the run, if they cannot be compared."""
    notes: list[str] = []
    runs = _usable(expand_folders(list(paths)), notes)
    tasks = list(dict.fromkeys(task for run in runs for task in run.config.env.tasks))
    panels = []
    for task in tasks:
        _one_protocol(task, [run for run in runs if task in run.config.env.tasks])
        panels.append(_panel(task, runs, by, RETURN, notes))
    if len(tasks) > 1:
        together = _all_tasks(tasks, runs, by)
        if together is None:
            notes.append("Scores of tasks with different scales are not averaged: each task has its own table.")
        else:
            panels.append(together)
    return Comparison(tuple(panels), tuple(dict.fromkeys(notes)))


# -- what is compared ----------------------------------------------------------------------------------------


def _usable(paths: list[Path], notes: list[str]) -> list[RunFolder]:
    """Return the runs that have a return; add notes about the others and about unfinished runs."""
    runs = []
    for path in paths:
        if path.is_dir() and not (path / "config.toml").is_file():
            notes.append(f"{path} contains no run; it is left out.")
            continue
        run = read_run(path)
        if run.unreadable_lines:
            lines = "1 line" if run.unreadable_lines == 1 else f"{run.unreadable_lines} lines"
            notes.append(f"{path}: {lines} of metrics.jsonl left out (unreadable).")
        if not all(np.isfinite(_curve(run, task, RETURN, "env_steps")[1]).any() for task in run.config.env.tasks):
            notes.append(f"{path} has no training return yet; it is left out.")
            continue
        if run.state == "running":
            notes.append(f"{path} is still running; the comparison uses its rows so far.")
        elif run.state != "finished":
            notes.append(f"{path} did not finish ({run.state}); the comparison uses the rows it has.")
        runs.append(run)
    if not runs:
        why = f"; {notes[0].rstrip('.')}" if notes else ""
        raise ValueError(f"none of the {len(paths)} folders contains a run with a training return{why}")
    return runs


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
    values = run.column(metric if len(run.config.env.tasks) == 1 else f"{metric}/{task}")
    known = np.isfinite(values) & np.isfinite(run.column(axis))
    return run.column(axis)[known], values[known]


def _panel(task: str, runs: Sequence[RunFolder], by: str, metric: str, notes: list[str]) -> ComparisonPanel:
    """Return the panel of one task: runs cut where the shortest one ends, grouped and labeled."""
    runs = [run for run in runs if task in run.config.env.tasks]
    ends = {axis: [_curve(run, task, metric, axis)[0][-1] for run in runs] for axis in AXES}
    grids = {
        axis: np.linspace(
            min(max(_curve(run, task, metric, axis)[0][0] for run in runs), min(ends[axis])),
            min(ends[axis]),
            NUM_POINTS,
        )
        for axis in AXES
    }
    shortest, longest = int(np.argmin(ends[by])), int(np.argmax(ends[by]))
    if ends[by][longest] > 1.02 * ends[by][shortest]:
        unit = UNITS[by]
        notes.append(
            f"{task}: compared at {ends[by][shortest]:,.0f} {unit}, where {runs[shortest].path} ends; the longest run "
            f"is {runs[longest].path} with {ends[by][longest]:,.0f} {unit}."
        )
    other = AXES[1 - AXES.index(by)]
    groups = []
    for label, members in _grouped(runs):
        seeds = [run.config.run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            notes.append(f"{label or task}: several runs have the same seed; they are treated as independent.")
        curves = {
            axis: np.stack([np.interp(grids[axis], *_curve(run, task, metric, axis)) for run in members])
            for axis in AXES
        }
        others = [np.interp(grids[by][-1], run.column(by), run.column(other)) for run in members]
        group = RunGroup(label, tuple(members), curves[by][:, -1].copy(), float(np.median(others)), curves)
        groups.append((label, (group,)))
        if len(members) == 1:
            notes.append(f"{label or task}: a single run has no interval; train more seeds.")
        elif len(members) < MIN_RUNS:
            notes.append(
                f"Groups of fewer than {MIN_RUNS} runs: true intervals are wider than the bootstrap intervals."
            )
    quantity = "training return" if metric == RETURN else "human-normalized return"
    return ComparisonPanel(task, quantity, by, float(grids[by][-1]), grids, tuple(groups))


def _grouped(runs: Sequence[RunFolder]) -> list[tuple[str, list[RunFolder]]]:
    """Return (label, runs) by settings, in the given order. A label lists the settings that differ between groups."""
    settings: list[dict[str, Any]] = []
    together: list[list[RunFolder]] = []
    for run in runs:
        own = run.settings()
        at = next((n for n, other in enumerate(settings) if own == other or same(own, other)), len(settings))
        if at == len(settings):
            settings.append(own)
            together.append([])
        together[at].append(run)
    names = dict.fromkeys(name for each in settings for name in each)
    differ = [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]
    labels = [" ".join(format_setting(n, each[n]) for n in differ if n in each) or "default" for each in settings]
    if len(labels) == 1:
        labels = [""]
    return list(zip(labels, together, strict=True))


def _all_tasks(tasks: Sequence[str], runs: Sequence[RunFolder], by: str) -> ComparisonPanel | None:
    """Return the panel of all tasks on the scale 0 = random policy, 1 = human tester; None if a task has no such scale.

    Groups of different tasks are matched by label and must have runs of every task. The axis is in fractions of each
    task's own length.
    """
    for task in tasks:
        for run in runs:
            if task in run.config.env.tasks and not len(_curve(run, task, HUMAN, "env_steps")[0]):
                return None
    panels = [_panel(task, runs, by, HUMAN, []) for task in tasks]
    common = [label for label, _ in panels[0].groups if all(label in dict(panel.groups) for panel in panels)]
    if not common:
        return None
    groups = tuple((label, tuple(dict(panel.groups)[label][0] for panel in panels)) for label in common)
    end = float(np.median([panel.end for panel in panels]))
    grids = {axis: np.median([panel.grids[axis] for panel in panels], axis=0) for axis in AXES}
    return ComparisonPanel(f"all {len(tasks)} tasks", "human-normalized return", by, end, grids, groups)
