"""Train the MinAtar presets for the 5M steps at which others have published scores of PPO.

    python benchmarks/minatar_presets.py --seeds 3                   # hours; can be interrupted and continued
    python benchmarks/minatar_presets.py --only asterix --seeds 1
    python benchmarks/minatar_presets.py --report                    # the table of the finished runs

Every run is lockstep with a forced lag of one update, the least that data of an async run have: the result does not
depend on the load of the machine. Writes benchmarks/results/minatar_presets_tables.md and the learning curves
(minatar_presets.svg and .png) there; the curves of finished runs are kept in minatar_presets_scores.csv. The scores of
the presets as they are typed, in async mode, are in docs/scores.md.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import numpy as np
from figures import RESULTS, save
from grid import Cell, Run, Score, finished_seeds, measure, score
from scores import BLOCKS, Scores

STEPS = 5_000_000
PUBLISHED = {  # PPO, training return at 5M frames; the comments at the top of the presets
    "asterix": 26.0,
    "breakout": 22.0,
    "freeway": 57.0,
    "seaquest": 22.0,
    "space_invaders": 205.0,
}
FLAGS = ("--batch.forced-lag", "1", "--log.every-updates", "8")


def cells() -> dict[str, Cell]:
    """Game -> cell."""
    return {game: Cell(f"minatar_presets/{game}", f"minatar/{game}", FLAGS, STEPS) for game in PUBLISHED}


def report(kept: Scores, seeds: int) -> list[str]:
    """The page. Draws the picture too."""
    page = [
        "# MinAtar presets at 5M steps", "",
        f"`python benchmarks/minatar_presets.py`, {datetime.date.today()}; lockstep with a forced lag of one update. "
        "Training return of the last tenth of the run: median and each seed. Published: PPO, training return at 5M "
        "frames, from the comments of the presets; which publication they are from was not recorded.", "",
        "| preset | return | seeds | published | processor |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    found: dict[str, Score] = {}
    for game, cell in cells().items():
        count = finished_seeds(cell, kept, seeds)
        one = score(cell, kept, count) if count else None
        if one is None:
            continue
        found[game] = one
        each = ", ".join(f"{value:.1f}" for value in one.final)
        columns = [f"`{cell.target}`", f"{np.median(one.final):.1f}", each, f"{PUBLISHED[game]:g}",
                   where(cell, kept, count)]  # fmt: skip
        page.append(f"| {' | '.join(columns)} |")
    if found:
        picture(found)
        page += ["", "![Training return over env steps, a panel per game](minatar_presets.svg)"]
    return [*page, ""]


def where(cell: Cell, kept: Scores, seeds: int) -> str:
    """The processors on which the runs of a cell were made."""
    curves = [Run(cell, seed, RESULTS).curve(kept) for seed in range(seeds)]
    return ", ".join(dict.fromkeys(curve.row["processor"] for curve in curves if curve is not None))


def picture(found: Mapping[str, Score]) -> None:
    """Plot the learning curve of every seed, and the published return."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3), squeeze=False)
    at = (np.arange(BLOCKS) + 0.5) * STEPS / BLOCKS / 1e6
    for axis, (game, one) in zip(axes[0], found.items(), strict=True):
        axis.plot(at, one.curves.T, color="C0", alpha=0.8)
        axis.axhline(PUBLISHED[game], color="gray", linestyle="--", label="published, PPO at 5M")
        axis.set(title=game.replace("_", " "), xlabel="million env steps")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("training return")
    axes[0][0].legend(fontsize=7, frameon=False)
    save(figure, "minatar_presets")


if __name__ == "__main__":
    measure(__doc__.splitlines()[0], "minatar_presets", cells().values(), report)
