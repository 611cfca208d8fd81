"""Compare PQN with the PPO presets on MinAtar, at equal env steps and at equal seconds.

    python benchmarks/pqn.py --seeds 3                # can be interrupted and continued
    python benchmarks/pqn.py --only breakout --seeds 1
    python benchmarks/pqn.py --report                 # table of the finished runs

The presets as typed, in async mode, one run at a time: nothing else may run. The two algorithms take turns, so that a
slow hour of the machine hits both. "At equal seconds": the slower one's curve is read at the time at which the
faster one had all its steps (a tenth of the run before it); within a run, steps per second are taken as constant.
Writes benchmarks/results/pqn_tables.md, and the curves of finished runs to pqn_scores.csv there.
"""

from __future__ import annotations

import datetime
import os

import numpy as np
from grid import RESULTS, Cell, Run, finished_seeds, measure, show
from scores import Curve, Scores

from sfactory.device.machine import processor
from sfactory.monitor.statistics import bootstrap, iqm

STEPS = 2_000_000
GAMES = ("breakout", "asterix", "freeway", "seaquest", "space_invaders")
ALGORITHMS = {"ppo": ("PPO preset", "minatar/{}"), "pqn": ("PQN preset", "pqn/minatar/{}")}


def cells() -> dict[tuple[str, str], Cell]:
    """(game, algorithm) -> cell."""
    return {
        (game, name): Cell(f"pqn/{game}_{name}", target.format(game), (), STEPS, mode="async")
        for game in GAMES
        for name, (_, target) in ALGORITHMS.items()
    }


def interval(values: list[float]) -> tuple[float, float, float]:
    """Interquartile mean over seeds and its 95 % bootstrap interval."""
    array = np.array(values)
    return float(iqm(array)), *bootstrap([array], iqm)


def table(kept: Scores, seeds: int) -> list[str]:
    """A row per game and algorithm."""
    head = ["game", "algorithm", "seeds", "last tenth", "mean over the run", "seconds", "at equal seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    grid = cells()
    for game in GAMES:
        common = min(finished_seeds(grid[game, name], kept, seeds) for name in ALGORITHMS)
        curves: dict[str, list[Curve]] = {name: [] for name in ALGORITHMS}
        for name in ALGORITHMS:
            for seed in range(common):
                found = Run(grid[game, name], seed, RESULTS).curve(kept)
                assert found is not None
                curves[name].append(found)
        for name, (label, _) in ALGORITHMS.items() if common else ():
            own = curves[name]
            fastest = [min(one.seconds for one in pair) for pair in zip(*curves.values(), strict=True)]
            cut = [one.at_seconds(limit) for one, limit in zip(own, fastest, strict=True)]
            row = [game, label, str(common), show(interval([one.final for one in own]), 1),
                   show(interval([one.area for one in own]), 1), f"{np.median([one.seconds for one in own]):.0f}",
                   show(interval(cut), 1)]  # fmt: skip
            lines.append("| " + " | ".join(row) + " |")
    return lines


def report(kept: Scores, seeds: int) -> list[str]:
    """The page."""
    return [
        "# PQN against the PPO presets", "",
        f"`python benchmarks/pqn.py`, {datetime.date.today()}, {processor()}, {os.cpu_count()} cores; {STEPS:,} steps "
        "per run, training return, interquartile mean over seeds (95 % bootstrap interval).", "",
        *table(kept, seeds), "",
    ]  # fmt: skip


def main() -> None:
    measure(__doc__.splitlines()[0], "pqn", cells().values(), report, most_jobs=1)


if __name__ == "__main__":
    main()
