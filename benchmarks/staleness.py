"""Measure return against forced lag for every correction for stale data (Hilton et al. 2021, figure 1).

    python benchmarks/staleness.py                     # corrections; can be stopped and goes on where it was
    python benchmarks/staleness.py --only cartpole --seeds 10
    python benchmarks/staleness.py objectives --only breakout --seeds 3
    python benchmarks/staleness.py options             # traces, step rules, ...: the default with one thing changed
    python benchmarks/staleness.py rates               # learning rates x 1/4 to 4 at lag 8
    python benchmarks/staleness.py --report            # tables and pictures of the finished runs, of all sets

Every run is lockstep, so that update u trains on data made by version max(0, u - lag) exactly. All runs of a task share
the network, the seeds and the number of environment steps. Every objective, the baselines included, has three settings
of its own knob. The best one is chosen by runs of its own (shorter or fewer, with other seeds than the comparison, so
that the choice does not flatter it), at each lag or at the nearest lag that has such runs. The settings are in
staleness_cells.py. Writes benchmarks/results/staleness_tables.md, staleness_TASK.svg / .png, objectives.svg / .png and
rates_TASK.svg / .png, and the curves of finished runs to staleness_scores.csv there: those are not run again.
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from figures import save
from grid import RESULTS, Cell, Score, add_arguments, chosen_cells, finished_seeds, run, score, show
from scores import Scores
from staleness_cells import (
    FACTORS,
    METHODS,
    OBJECTIVES,
    ONLY,
    OPTIONS,
    RATE_LAG,
    RATES,
    TASKS,
    corrections,
    objectives,
    options,
    rates,
    tuning,
)

SETS = ("corrections", "objectives", "options", "rates")
Key = TypeVar("Key", bound=tuple[Any, ...])
SHOWN = {"area": "mean over the whole run (area under the curve)", "final": "last tenth of the run"}


def scores_of(cells: Mapping[Key, Cell], kept: Scores, seeds: int) -> tuple[dict[Key, Score], dict[str, int]]:
    """Scores of finished cells, and the seeds of every task that all of them have: compared on the same ones."""
    found: dict[Key, Score] = {}
    common = {}
    for task in TASKS:
        there = {key: finished_seeds(cell, kept, seeds) for key, cell in cells.items() if key[0] == task}
        common[task] = min((count for count in there.values() if count), default=0)
        values = {key: score(cells[key], kept, common[task]) for key, count in there.items() if count}
        found |= {key: value for key, value in values.items() if value is not None}
    return found, common


def tuned(kept: Scores) -> dict[tuple[str, str, int], dict[float, float]]:
    """(task, row, lag) -> value of its knob -> mean return of the runs that choose it; those with all three values."""
    cells, found = tuning(all_lags=True), {}
    for task, row, lag in dict.fromkeys(key[:3] for key in cells):
        values = OBJECTIVES[row].values
        of_values = {x: score(cells[task, row, lag, x], kept, TASKS[task].tuning_seeds) for x in values}
        if all(of_values.values()):
            found[task, row, lag] = {x: float(one.area.mean()) for x, one in of_values.items() if one is not None}
    return found


def chosen(of_tuning: Mapping[tuple[str, str, int], Mapping[float, float]]) -> dict[tuple[str, str, int], float]:
    """(task, row, lag) -> the value with the highest mean return at that lag, or at the nearest one that chooses."""
    best = {key: max(found, key=lambda value: found[value]) for key, found in of_tuning.items()}
    choices = dict(best)
    for name, row in dict.fromkeys(key[:2] for key in best):
        there = [lag for lag in TASKS[name].tuning_lags if (name, row, lag) in best]
        if len(there) == len(TASKS[name].tuning_lags):  # before that the nearest one may still be missing
            for lag in TASKS[name].short_lags:
                nearest = min((abs(one - lag), one) for one in there)[1]
                choices.setdefault((name, row, lag), best[name, row, nearest])
    return choices


def table(task: str, scores: dict[tuple[str, str, int], Score], text: Callable[[Score], str]) -> list[str]:
    """Return a Markdown table: a row per method, a column per lag."""
    lags = TASKS[task].lags
    lines = head("correction", lags)
    for method, (label, _) in METHODS.items():
        if method in ONLY.get(task, METHODS):
            row = [scores.get((task, method, lag)) for lag in lags]
            lines.append(f"| {label} | " + " | ".join(text(s) if s else "not run" for s in row) + " |")
    return lines


def head(first: str, lags: tuple[int, ...]) -> list[str]:
    return [f"| {first} | " + " | ".join(f"lag {lag}" for lag in lags) + " |", "|---|" + "---|" * len(lags)]


class Objectives(NamedTuple):
    """What was measured of the objectives: (task, row, lag) -> ..."""

    scores: Mapping[tuple[str, str, int], Score]
    chosen: Mapping[tuple[str, str, int], float]
    tuned: Mapping[tuple[str, str, int], Mapping[float, float]]

    def lags(self, task: str) -> tuple[int, ...]:
        """The lags that have a score, and those that are always measured."""
        return tuple(sorted({lag for name, _, lag in self.scores if name == task} | set(TASKS[task].short_lags)))


def objective_tables(task: str, found: Objectives, digits: int) -> list[str]:
    """The scores at each lag with the setting that was chosen; then what the three settings had in the runs for it."""
    lags, page = found.lags(task), []

    def shown(row: str, lag: int, what: str) -> str:
        one = found.scores.get((task, row, lag))
        text = show(one.interval(getattr(one, what)), digits) if one else "not run"
        return f"{text} at {found.chosen[task, row, lag]:g}" if one else text

    def three(row: str, lag: int) -> str:
        values = found.tuned.get((task, row, lag), {})
        empty = "not run" if lag in TASKS[task].tuning_lags else ""
        return " / ".join(f"{values[x]:.{digits}f}" for x in OBJECTIVES[row].values) if values else empty

    for what, words in SHOWN.items():
        page += [f"Training return with the chosen setting (which one), {words}:", "", *head("objective", lags)]
        for row, (label, _, knob, *_) in OBJECTIVES.items():
            page.append(f"| {label}, `{knob}` | " + " | ".join(shown(row, lag, what) for lag in lags) + " |")
        page.append("")
    one = TASKS[task]
    page.append(f"The choice: mean over runs of {one.tuning_steps:,} steps with each of three settings, in the order "
                f"of the first column; seeds: {one.tuning_seeds}, not those above:")  # fmt: skip
    page += ["", *head("objective", lags)]
    for row, (label, _, knob, values, _) in OBJECTIVES.items():
        settings = ", ".join(f"{x:g}" for x in values)
        page.append(f"| {label}, `{knob}` {settings} | " + " | ".join(three(row, lag) for lag in lags) + " |")
    return [*page, ""]


def option_tables(task: str, scores: Mapping[tuple[str, str, int], Score], digits: int) -> list[str]:
    """A row per option that has runs, a column per lag."""
    page, lags = [], TASKS[task].short_lags
    there = [option for option in OPTIONS if any((task, option, lag) in scores for lag in lags)]
    for what, words in SHOWN.items():
        page += [f"Training return, {words}:", "", *head("the default with", lags)]
        for option in there:
            row = [scores.get((task, option, lag)) for lag in lags]
            shown = [show(s.interval(getattr(s, what)), digits) if s else "not run" for s in row]
            page.append(f"| {OPTIONS[option][0]} | " + " | ".join(shown) + " |")
        page.append("")
    return page


def rate_tables(task: str, scores: Mapping[tuple[str, str, float], Score], digits: int) -> list[str]:
    """A row per rule, a column per factor on the learning rate."""
    columns = " | ".join(f"lr x {factor:g}" for factor in FACTORS)
    page = []
    for what, words in SHOWN.items():
        page += [f"Training return at lag {RATE_LAG}, {words}; lr {TASKS[task].lr:g}:", ""]
        page += [f"| rate | {columns} |", "|---|" + "---|" * len(FACTORS)]
        for rule, (label, _) in RATES.items():
            row = [scores.get((task, rule, factor)) for factor in FACTORS]
            shown = [show(s.interval(getattr(s, what)), digits) if s else "not run" for s in row]
            page.append(f"| {label} | " + " | ".join(shown) + " |")
        page.append("")
    return page


def lines_picture(name: str, title: str, ticks: list[str], label: str, curves: dict[str, list[Score | None]]) -> None:
    """Lines with intervals over a few places, one line per name; the mean over the run and its last tenth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    for axis, what, words in zip(axes, SHOWN, ("mean over the run", "last tenth of the run"), strict=True):
        for number, (line, values) in enumerate(curves.items()):
            points = [(at, s.interval(getattr(s, what))) for at, s in enumerate(values) if s is not None]
            if not points:
                continue
            at = [place + 0.04 * (number - len(curves) / 2) for place, _ in points]
            reach = [[m - lo for _, (m, lo, _) in points], [hi - m for _, (m, _, hi) in points]]
            axis.errorbar(at, [m for _, (m, _, _) in points], yerr=reach, label=line, marker="o", capsize=2,
                          linewidth=1.5, color=f"C{number}")  # fmt: skip
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set(xlabel=label, title=f"training return, {words}")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.suptitle(title)
    save(figure, name)


def objectives_picture(found: Objectives) -> None:
    """One panel per task, one row per objective, one point with its interval per lag.

    On top is what keeps most at the largest lag: the mean over tasks of its return divided by that of decoupled PPO.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks = [task for task in TASKS if any(key[0] == task for key in found.scores)]

    def middle(task: str, row: str) -> float:
        one = found.scores.get((task, row, found.lags(task)[-1]))
        return one.interval(one.area)[0] if one else 0.0

    references = {task: middle(task, "decoupled") or 1.0 for task in tasks}
    kept = {row: sum(middle(task, row) / of for task, of in references.items()) for row in OBJECTIVES}
    order = sorted((row for row in OBJECTIVES if kept[row]), key=lambda row: kept[row])
    size = (4 + 4 * len(tasks), 1.4 + 0.32 * len(order))
    figure, axes = plt.subplots(1, len(tasks), figsize=size, sharey=True, squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for number, lag in enumerate(found.lags(task)):
            points = [(place, found.scores.get((task, row, lag))) for place, row in enumerate(order)]
            there = [(place, one.interval(one.area)) for place, one in points if one is not None]
            reach = [[m - low for _, (m, low, _) in there], [high - m for _, (m, _, high) in there]]
            at = [place + 0.22 * (1 - number) for place, _ in there]
            axis.errorbar([m for _, (m, _, _) in there], at, xerr=reach, fmt="o", markersize=5, capsize=2,
                          color=f"C{number}", label=f"lag {lag}")  # fmt: skip
        axis.set_yticks(range(len(order)), [OBJECTIVES[row].label for row in order])
        axis.set_title(f"{TASKS[task].target}, {TASKS[task].steps:,} steps", fontsize=10)
        axis.set_ylim(-0.7, len(order) - 0.3)
        axis.grid(alpha=0.3, axis="x")
        axis.grid(alpha=0.15, axis="y")
        axis.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.03), fontsize=9)
    words = (
        "training return, mean over the run, at the best of three settings, 95 % intervals; sorted by the largest lag"
    )
    figure.suptitle(words, fontsize=10)
    save(figure, "objectives")


def report(kept: Scores, seeds: int) -> list[str]:
    """The page with all tables; writes the pictures."""
    page = [
        f"`python benchmarks/staleness.py`, {datetime.date.today()}, {os.cpu_count()} cores; interquartile mean over "
        "seeds (95 % bootstrap interval).", "",
    ]  # fmt: skip
    of_corrections, seeds_of = scores_of(corrections(), kept, seeds)
    of_tuning = tuned(kept)
    of_objectives, seeds_of_objectives = scores_of(objectives(chosen(of_tuning)), kept, seeds)
    found = Objectives(of_objectives, chosen(of_tuning), of_tuning)
    of_options, seeds_of_options = scores_of(options(), kept, seeds)
    of_rates, seeds_of_rates = scores_of(rates(), kept, seeds)
    if of_objectives:
        objectives_picture(found)
    for name, task in TASKS.items():
        digits = 0 if name == "cartpole" else 1
        title = f"{task.target}, {task.steps:,} steps per run"
        if any(key[0] == name for key in of_corrections):
            curves = {label: [of_corrections.get((name, method, lag)) for lag in task.lags]
                      for method, (label, _) in METHODS.items()}  # fmt: skip
            lines_picture(f"staleness_{name}", f"{title}: interquartile mean over seeds, 95 % intervals",
                          [str(lag) for lag in task.lags], "forced lag (updates)", curves)  # fmt: skip
            page += [f"## {title}, {seeds_of[name]} seeds", "", f"`{' '.join(task.flags.split())}`", ""]
            page += [f"![return against lag](staleness_{name}.svg)", ""]
            for what, words in SHOWN.items():
                page += [f"Training return, {words}:", ""]
                page += [*table(name, of_corrections, lambda s: show(s.interval(getattr(s, what)), digits)), ""]  # noqa: B023
            page += ["Effective sample size of the weights, second half of the run:", ""]
            page += [*table(name, of_corrections, lambda s: f"{s.extra['offpolicy/ess']:.2f}"), ""]
        if any(key[0] == name for key in of_objectives):
            page += [f"## Objectives: {title}, {seeds_of_objectives[name]} seeds", ""]
            page += ["![objectives](objectives.svg)", "", *objective_tables(name, found, digits)]
        if any(key[0] == name for key in of_options):
            page += [f"## Options: {title}, {seeds_of_options[name]} seeds", ""]
            page += [*option_tables(name, of_options, digits)]
        if any(key[0] == name for key in of_rates):
            curves = {label: [of_rates.get((name, rule, factor)) for factor in FACTORS]
                      for rule, (label, _) in RATES.items()}  # fmt: skip
            lines_picture(f"rates_{name}", f"{title}, lag {RATE_LAG}", [f"x {factor:g}" for factor in FACTORS],
                          f"learning rate, times {task.lr:g}", curves)  # fmt: skip
            page += [f"## Learning rates: {title}, {seeds_of_rates[name]} seeds", ""]
            page += [f"![learning rates](rates_{name}.svg)", "", *rate_tables(name, of_rates, digits)]
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", choices=SETS, default="corrections", help="what to compare")
    parser.add_argument("--all-lags", action="store_true", help="objectives at the lags of the corrections")
    add_arguments(parser, "staleness_scores.csv")
    given = parser.parse_args()
    kept = Scores(given.scores)
    if not given.report:
        names = [given.sets] if isinstance(given.sets, str) else given.sets

        def run_all(cells: Mapping[Any, Cell], seeds: int) -> None:
            if chosen := chosen_cells(cells.values(), given.only):
                took = run(chosen, kept, given.out, seeds, given.jobs)
                print(f"{took / 60:.1f} minutes with {given.jobs} jobs")

        for name, cells in {"corrections": corrections, "options": options, "rates": rates}.items():
            if name in names:
                run_all(cells(), given.seeds)
        if "objectives" in names:
            cells_of_tuning = tuning(given.all_lags)
            for name, task in TASKS.items():
                run_all({key: cell for key, cell in cells_of_tuning.items() if key[0] == name}, task.tuning_seeds)
            run_all(objectives(chosen(tuned(kept))), given.seeds)
    page = report(kept, given.seeds)
    (RESULTS / "staleness_tables.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
