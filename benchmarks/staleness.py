"""Measure return against forced lag for every correction for stale data (Hilton et al. 2021, figure 1).

    python benchmarks/staleness.py                     # corrections; can be stopped and goes on where it was
    python benchmarks/staleness.py --only cartpole --seeds 10
    python benchmarks/staleness.py objectives --only objectives/breakout --seeds 3
    python benchmarks/staleness.py rates               # learning rates x 1/4 to 4 at lag 8
    python benchmarks/staleness.py --report            # tables and pictures of the finished runs, of all sets

Every run is lockstep, so that update u trains on data made by version max(0, u - lag) exactly. All runs of a task share
the network, the seeds and the number of environment steps. Every objective, the baselines included, has three settings
of its own knob, and the table shows the best one at each lag. The settings are in staleness_cells.py. Writes
benchmarks/results/staleness_tables.md, staleness_TASK.svg / .png, objectives_TASK.svg / .png and rates_TASK.svg / .png.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from grid import Cell, Score, add_arguments, finished_seeds, run, score, show
from staleness_cells import FACTORS, METHODS, OBJECTIVES, ONLY, RATE_LAG, RATES, TASKS, corrections, objectives, rates

HERE = Path(__file__).parent
SETS: dict[str, Callable[[], Mapping[Any, Cell]]] = {
    "corrections": corrections,
    "objectives": objectives,
    "rates": rates,
}
Key = TypeVar("Key", bound=tuple[Any, ...])
SHOWN = {"area": "mean over the whole run (area under the curve)", "final": "last tenth of the run"}


def scores_of(cells: Mapping[Key, Cell], out: Path, seeds: int) -> tuple[dict[Key, Score], dict[str, int]]:
    """Scores of finished cells, and the seeds of every task that all of them have: compared on the same ones."""
    found: dict[Key, Score] = {}
    common = {}
    for task in TASKS:
        there = {key: finished_seeds(cell, out, seeds) for key, cell in cells.items() if key[0] == task}
        common[task] = min((count for count in there.values() if count), default=0)
        values = {key: score(cells[key], out, common[task]) for key, count in there.items() if count}
        found |= {key: value for key, value in values.items() if value is not None}
    return found, common


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


def best(
    task: str, scores: Mapping[tuple[str, str, int, float], Score], row: str, lag: int
) -> tuple[float, Score] | None:
    """The value of the knob with the highest mean over the run, and its score; None while one of them is missing."""
    found = {value: scores.get((task, row, lag, value)) for value in OBJECTIVES[row].values}
    done = {value: one for value, one in found.items() if one is not None}
    if len(done) < len(found):
        return None
    value = max(done, key=lambda value: done[value].interval(done[value].area)[0])
    return value, done[value]


def objective_tables(task: str, scores: Mapping[tuple[str, str, int, float], Score], digits: int) -> list[str]:
    """Best of three settings at each lag, with the setting; then the median of the three."""
    lags, page = objective_lags(task, scores), []

    def shown(row: str, lag: int, what: str) -> str:
        found = best(task, scores, row, lag)
        return f"{show(found[1].interval(getattr(found[1], what)), digits)} at {found[0]:g}" if found else "not run"

    def median(row: str, lag: int) -> str:
        found = [scores.get((task, row, lag, value)) for value in OBJECTIVES[row].values]
        middle = [s.interval(s.area)[0] for s in found if s is not None]
        return f"{statistics.median(middle):.{digits}f}" if len(middle) == len(found) else "not run"

    for what, words in SHOWN.items():
        page += [f"Training return of the best of three settings (which one), {words}:", "", *head("objective", lags)]
        for row, (label, _, knob, *_) in OBJECTIVES.items():
            page.append(f"| {label}, `{knob}` | " + " | ".join(shown(row, lag, what) for lag in lags) + " |")
        page.append("")
    page += ["Median of the three settings, mean over the whole run:", "", *head("objective", lags)]
    for row, (label, _, knob, *_) in OBJECTIVES.items():
        page.append(f"| {label}, `{knob}` | " + " | ".join(median(row, lag) for lag in lags) + " |")
    return [*page, ""]


def objective_lags(task: str, scores: Mapping[tuple[str, str, int, float], Score]) -> tuple[int, ...]:
    """The lags of a task that have a score, and those that are always measured."""
    there = {lag for name, _, lag, _ in scores if name == task}
    return tuple(sorted(there | set(TASKS[task].short_lags)))


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


def save(figure: Any, name: str) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(HERE / "results" / f"{name}.{kind}", dpi=110)
    plt.close(figure)


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


def objectives_picture(task: str, scores: Mapping[tuple[str, str, int, float], Score]) -> None:
    """One row per objective, one point with its interval per lag, the best at the largest lag on top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lags = objective_lags(task, scores)
    found = {row: [best(task, scores, row, lag) for lag in lags] for row in OBJECTIVES}
    found = {row: values for row, values in found.items() if any(values)}

    def last(row: str) -> float:
        one = found[row][-1]
        return one[1].interval(one[1].area)[0] if one else float("-inf")

    order = sorted(found, key=last)
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.32 * len(order)))
    for number, lag in enumerate(lags):
        for place, row in enumerate(order):
            one = found[row][number]
            if one is None:
                continue
            middle, low, high = one[1].interval(one[1].area)
            label = f"lag {lag}" if place == len(order) - 1 else None
            at, reach = place + 0.22 * (1 - number), [[middle - low], [high - middle]]
            axis.errorbar(middle, at, xerr=reach, marker="o", capsize=2, color=f"C{number}", label=label)
    axis.set_yticks(range(len(order)), [OBJECTIVES[row].label for row in order])
    axis.set(xlabel="training return, mean over the run; best of three settings, 95 % intervals",
             title=f"{TASKS[task].target}, {TASKS[task].steps:,} steps")  # fmt: skip
    axis.grid(alpha=0.3, axis="x")
    axis.legend(frameon=False)
    save(figure, f"objectives_{task}")


def report(out: Path, seeds: int) -> list[str]:
    """The page with all tables; writes the pictures."""
    page = [
        f"`python benchmarks/staleness.py`, {datetime.date.today()}, {os.cpu_count()} cores; interquartile mean over "
        "seeds (95 % bootstrap interval).", "",
    ]  # fmt: skip
    of_corrections, seeds_of = scores_of(corrections(), out, seeds)
    of_objectives, seeds_of_objectives = scores_of(objectives(all_lags=True), out, seeds)
    of_rates, seeds_of_rates = scores_of(rates(), out, seeds)
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
            objectives_picture(name, of_objectives)
            page += [f"## Objectives: {title}, {seeds_of_objectives[name]} seeds", ""]
            page += [f"![objectives](objectives_{name}.svg)", "", *objective_tables(name, of_objectives, digits)]
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
    parser.add_argument("sets", nargs="*", choices=[*SETS], default="corrections", help="what to compare")
    parser.add_argument("--all-lags", action="store_true", help="objectives at the lags of the corrections")
    add_arguments(parser)
    options = parser.parse_args()
    if not options.report:
        chosen = [options.sets] if isinstance(options.sets, str) else options.sets
        cells = {}
        for name in chosen:
            found = objectives(options.all_lags) if name == "objectives" else SETS[name]()
            cells |= {cell.name: cell for cell in found.values() if options.only in cell.name}
        took = run(list(cells.values()), options.out, options.seeds, options.jobs)
        print(f"{took / 60:.1f} minutes with {options.jobs} jobs")
    page = report(options.out, options.seeds)
    (HERE / "results" / "staleness_tables.md").write_text("\n".join(page))
    print("\n".join(page))


if __name__ == "__main__":
    main()
