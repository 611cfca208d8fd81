"""Runs side by side: which settings learn better, and how sure is that?

Runs of the same settings but for their seed are one group; a group is named by what differs between the groups. Every
task is a panel of its own. Curves and scores are read where the shortest run of the panel ends: a longer one would win
by its length. Scores under different protocols are refused. Statistics: `sfactory.monitor.statistics`.

A score is the training return there: the mean of the last 100 whole games. Shapes: n runs of a group, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.monitor.statistics import bootstrap, improvement_interval, iqm, iqm_curve, probability_of_improvement
from sfactory.run.reader import RunFolder, expand_folders, format_setting, read_run

POINTS = 120  # of a curve
FEW = 5  # runs of a group below which a bootstrap knows too few worlds
AXES = ("env_steps", "seconds")
WORDS = {"env_steps": "steps", "seconds": "s"}
RETURN, HUMAN = "charts/episodic_return", "charts/human_normalized"


@dataclass(frozen=True)
class Group:
    """Runs of one task with the same settings. [n] and [n, P] in the order of `runs`."""

    label: str
    runs: tuple[RunFolder, ...]
    scores: np.ndarray
    """[n] at the end of the panel."""
    other: float
    """Median over runs of the other axis there: the seconds that many steps took, or the steps of that many seconds."""
    curves: dict[str, np.ndarray]
    """Axis -> [n, P]."""

    def as_dict(self) -> dict[str, Any]:
        """For --json and the table."""
        low, high = bootstrap([self.scores], iqm)
        return {
            "label": self.label, "runs": [str(run.path) for run in self.runs], "scores": self.scores.tolist(),
            "iqm": float(iqm(self.scores)), "interval": [low, high] if len(self.scores) > 1 else None,
            "median": float(np.median(self.scores)), "min": float(self.scores.min()), "max": float(self.scores.max()),
        }  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One task, or all of them on the human-normalised scale."""

    title: str
    quantity: str
    by: str
    end: float
    """Where scores are read, on the axis `by`."""
    grids: dict[str, np.ndarray]
    """Axis -> [P]."""
    groups: tuple[tuple[str, tuple[Group, ...]], ...]
    """(label, a group per task: one, but of all tasks together)."""

    def bands(self, axis: str) -> dict[str, np.ndarray]:
        """Label -> [3, P]: IQM, and its interval."""
        return {label: iqm_curve([g.curves[axis] for g in strata]) for label, strata in self.groups}

    def improvement(self, label: str) -> tuple[float, float, float] | None:
        """Probability that a run of `label` beats one of the first group, and its interval; None for the first."""
        groups = dict(self.groups)
        first = next(iter(groups))
        if label == first:
            return None
        ours, theirs = ([g.scores for g in groups[name]] for name in (label, first))
        return probability_of_improvement(ours, theirs), *improvement_interval(ours, theirs)

    def row(self, label: str) -> dict[str, Any]:
        """What the table says of a group."""
        strata = dict(self.groups)[label]
        found = strata[0].as_dict()
        if len(strata) > 1:
            scores = [group.scores for group in strata]
            together = np.concatenate(scores)
            found |= {
                "runs": [str(run.path) for group in strata for run in group.runs], "scores": together.tolist(),
                "iqm": float(iqm(together)), "median": float(np.median(together)),
                "interval": list(bootstrap(scores, iqm)) if max(map(len, scores)) > 1 else None,
                "min": float(together.min()), "max": float(together.max()),
            }  # fmt: skip
        found["label"] = label
        if len(strata) == 1:
            found[WORDS[AXES[1 - AXES.index(self.by)]]] = strata[0].other
        found["improvement"] = self.improvement(label)
        return found


@dataclass(frozen=True)
class Comparison:
    """All panels, and sentences on what was left out or cut."""

    panels: tuple[Panel, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
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
    """Read the runs and put them side by side. ValueError for what cannot be compared, naming the run."""
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
            notes.append("Tasks of different scale are not averaged: each has a table of its own.")
        else:
            panels.append(together)
    return Comparison(tuple(panels), tuple(dict.fromkeys(notes)))


# -- what is compared ----------------------------------------------------------------------------------------


def _usable(paths: list[Path], notes: list[str]) -> list[RunFolder]:
    """Runs with a curve; a sentence for each that has none, or that is not at its end."""
    runs = []
    for path in paths:
        if path.is_dir() and not (path / "config.toml").is_file():
            notes.append(f"{path} holds no run: left out.")
            continue
        run = read_run(path)
        if run.unreadable_lines:
            lines = "a line" if run.unreadable_lines == 1 else f"{run.unreadable_lines} lines"
            notes.append(f"{path}: {lines} of metrics.jsonl cannot be read: left out.")
        if not all(np.isfinite(_curve(run, task, RETURN, "env_steps")[1]).any() for task in run.config.env.tasks):
            notes.append(f"{path} has no training return yet: left out.")
            continue
        if run.state == "running":
            notes.append(f"{path} is still running: counted as far as it is.")
        elif run.state != "finished":
            notes.append(f"{path} did not finish ({run.state}): counted as far as it came.")
        runs.append(run)
    if not runs:
        why = f"; {notes[0].rstrip('.')}" if notes else ""
        raise ValueError(f"none of the {len(paths)} folders holds a run with a training return{why}")
    return runs


def _one_protocol(task: str, runs: Sequence[RunFolder]) -> None:
    """ValueError if scores of the task were made under different rules."""
    if all(run.protocol and run.config.env.tasks == (task,) for run in runs):
        said = {id(run): run.protocol for run in runs}
    else:
        said = _rules(task, runs)
    first = runs[0]
    for run in runs:
        if said[id(run)] != said[id(first)]:
            raise ValueError(
                f"{run.path} was trained on {task} under other rules than {first.path}: {said[id(run)]} is not "
                f"{said[id(first)]}; scores of different protocols do not compare"
            )


def _rules(task: str, runs: Sequence[RunFolder]) -> dict[int, str]:
    """id of a run -> its protocol, asked of the environment where settings differ."""
    said = {id(run): repr(sorted(run.config.env.arguments.items())) for run in runs}
    if len(set(said.values())) == 1:
        return said
    from sfactory.envs import EnvError, make_spec

    known: dict[str, str] = {}
    for run in runs:
        own = said[id(run)]
        if own not in known:
            try:
                known[own] = make_spec(task, run.config.env.arguments).protocol or own
            except EnvError:  # its package is not here: settings that differ must be taken for rules
                known[own] = own
    return {key: known[own] for key, own in said.items()}


def _curve(run: RunFolder, task: str, metric: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
    """(positions, values) of a metric, rows without a value left out."""
    values = run.column(metric if len(run.config.env.tasks) == 1 else f"{metric}/{task}")
    known = np.isfinite(values) & np.isfinite(run.column(axis))
    return run.column(axis)[known], values[known]


def _panel(task: str, runs: Sequence[RunFolder], by: str, metric: str, notes: list[str]) -> Panel:
    """One task: cut where the shortest run ends, grouped, labelled."""
    runs = [run for run in runs if task in run.config.env.tasks]
    ends = {axis: [_curve(run, task, metric, axis)[0][-1] for run in runs] for axis in AXES}
    grids = {
        axis: np.linspace(
            min(max(_curve(run, task, metric, axis)[0][0] for run in runs), min(ends[axis])), min(ends[axis]), POINTS
        )
        for axis in AXES
    }
    shortest, longest = int(np.argmin(ends[by])), int(np.argmax(ends[by]))
    if ends[by][longest] > 1.02 * ends[by][shortest]:
        unit = WORDS[by]
        notes.append(
            f"{task}: compared at {ends[by][shortest]:,.0f} {unit}, where {runs[shortest].path} ends; the longest is "
            f"{runs[longest].path} with {ends[by][longest]:,.0f} {unit}."
        )
    other = AXES[1 - AXES.index(by)]
    groups = []
    for label, members in _grouped(runs):
        seeds = [run.config.run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            notes.append(f"{label or task}: runs with the same seed are counted as if they were independent.")
        curves = {
            axis: np.stack([np.interp(grids[axis], *_curve(run, task, metric, axis)) for run in members])
            for axis in AXES
        }
        there = [np.interp(grids[by][-1], run.column(by), run.column(other)) for run in members]
        group = Group(label, tuple(members), curves[by][:, -1].copy(), float(np.median(there)), curves)
        groups.append((label, (group,)))
        if len(members) == 1:
            notes.append(f"{label or task}: one run has no interval; train more seeds.")
        elif len(members) < FEW:
            notes.append(f"Groups of fewer than {FEW} runs: true intervals are wider than the bootstrap's.")
    what = "training return" if metric == RETURN else "human-normalised return"
    return Panel(task, what, by, float(grids[by][-1]), grids, tuple(groups))


def _grouped(runs: Sequence[RunFolder]) -> list[tuple[str, list[RunFolder]]]:
    """(label, runs) of the same settings, in the order of the command line. A label says what differs between them."""
    together: dict[tuple[tuple[str, Any], ...], list[RunFolder]] = {}
    for run in runs:
        together.setdefault(tuple(sorted(run.settings().items())), []).append(run)
    settings = [dict(key) for key in together]
    names = dict.fromkeys(name for each in settings for name in each)
    differ = [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]
    labels = [" ".join(format_setting(n, each[n]) for n in differ if n in each) or "default" for each in settings]
    if len(labels) == 1:
        labels = [""]
    return list(zip(labels, together.values(), strict=True))


def _all_tasks(tasks: Sequence[str], runs: Sequence[RunFolder], by: str) -> Panel | None:
    """All tasks on the scale 0 = random policy, 1 = human tester; None where one of them has no such scale.

    Groups of different tasks are the same where they are named the same; they must have played every task. The axis
    is in fractions of each task's own length.
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
    return Panel(f"all {len(tasks)} tasks", "human-normalised return", by, end, grids, groups)
