"""Compare PQN with the PPO presets on MinAtar, at equal env steps and at equal seconds.

    python benchmarks/pqn.py --seeds 3                # can be interrupted and continued
    python benchmarks/pqn.py --games breakout --seeds 1
    python benchmarks/pqn.py --report                 # table of the finished runs

The runs are those of `make scores`: the presets as typed, in async mode, one run at a time (nothing else may run), each
evaluated and kept in benchmarks/results/preset_scores.csv; what one of the two commands has run the other has too. Here
the two algorithms take turns, so that a slow hour of the machine hits both. "At equal seconds": the slower one's curve
is read at the time at which the faster one had all its steps (a tenth of the run before it); within a run, steps per
second are taken as constant. Writes benchmarks/results/pqn_tables.md; `make scores ARGS=--report` writes the pages of
the presets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from figures import RESULTS
from grid import Run, show
from preset_page import BUSY
from preset_scores import SCORES, PresetGrid, PresetScores, cell_of
from preset_table import PQN, TABLE
from scores import Curve, Scores

from sfactory.monitor.statistics import bootstrap, iqm

GAMES = ("breakout", "asterix", "freeway", "seaquest", "space_invaders")
ALGORITHMS = {"minatar/{}": "PPO", "pqn/minatar/{}": "PQN"}
"""Preset of a game -> its name in the table."""


def runs(games: Sequence[str], seeds: int, out: Path) -> list[Run]:
    """A run of both presets of every game for every seed, the seeds outermost and the two side by side."""
    names = [form.format(game) for game in games for form in ALGORITHMS]
    cells = [cell_of(name, TABLE[name]) for name in names]
    return [Run(cell, seed, out / cell.name / str(seed)) for seed in range(seeds) for cell in cells]


def pairs(game: str, kept: Scores, seeds: int) -> list[tuple[Curve, Curve]]:
    """The curves (PPO, PQN) of the first seeds of a game, up to the first one of which a run is missing."""
    found: list[tuple[Curve, Curve]] = []
    for seed in range(seeds):
        first, second = (one.curve(kept) for one in runs([game], seed + 1, Path())[-2:])
        if first is None or second is None:
            break
        found.append((first, second))
    return found


def shown(values: Sequence[float]) -> str:
    """Interquartile mean over seeds and its 95 % bootstrap interval; of one seed its value."""
    array = np.array(values)
    return show((float(iqm(array)), *bootstrap([array], iqm)), 1) if len(array) > 1 else f"{array[0]:.1f}"


def table(kept: Scores, seeds: int) -> list[str]:
    """A row per game and algorithm."""
    head = ["game", "algorithm", "seeds", "evaluation", "last tenth", "mean over the run", "seconds",
            "last tenth at equal seconds"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for game in GAMES:
        found = pairs(game, kept, seeds)
        limits = [min(one.seconds for one in pair) for pair in found]
        for label, own in zip(ALGORITHMS.values(), zip(*found, strict=True), strict=False):
            cut = [one.at_seconds(limit) for one, limit in zip(own, limits, strict=True)]
            busy = max((float(one.row["others"] or 0) for one in own), default=0.0) > BUSY
            seconds = f"{np.median([one.seconds for one in own]):.0f}{' (busy)' if busy else ''}"
            columns = ([float(one.row["score"]) for one in own], [one.final for one in own], [one.area for one in own])
            scores = [shown(values) for values in columns]
            lines.append("| " + " | ".join([game, label, str(len(own)), *scores, seconds, shown(cut)])
                         + " |")  # fmt: skip
    return lines


def report(kept: Scores, seeds: int) -> str:
    """The page."""
    curves = [one for game in GAMES for pair in pairs(game, kept, seeds) for one in pair]
    machines = sorted({f"{one.row['cores']} cores of {one.row['processor']}" for one in curves})
    dates = sorted({one.row["date"] for one in curves})
    lines = [
        "# PQN against the PPO presets", "",
        f"`python benchmarks/pqn.py --seeds {seeds}`; {'; '.join(machines)}; {' to '.join({*dates[:1], *dates[-1:]})}. "
        f"{PQN:,} steps per run. Evaluation: 100 episodes of the last policy. Last tenth and mean over the run: of the "
        "training return. Interquartile mean over seeds with its 95 % bootstrap interval; of one seed its value.", "",
        *table(kept, seeds), "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(typed: Sequence[str] | None = None, results: Path = RESULTS) -> None:
    """results: folder of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", nargs="+", choices=GAMES, default=GAMES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="start no run; the table of the finished ones")
    parser.add_argument("--scores", type=Path, default=SCORES, help="file of the finished runs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    options = parser.parse_args(typed)
    kept = PresetScores(options.scores, TABLE)
    try:
        if not options.report:
            PresetGrid(runs(options.games, options.seeds, options.out), kept).run()
    finally:  # also after Ctrl-C
        page = report(kept, options.seeds)
        (results / "pqn_tables.md").write_text(page)
        print(page)


if __name__ == "__main__":
    main()
