"""Train the MinAtar presets for the 5M steps at which others have published scores of PPO.

    python benchmarks/minatar_presets.py --seeds 3                   # hours; can be interrupted and continued
    python benchmarks/minatar_presets.py --only asterix --seeds 1
    python benchmarks/minatar_presets.py --report                    # the table of the finished runs

Every run is lockstep with a forced lag of one update, the least that data of an async run have: the result does not
depend on the load of the machine. Writes benchmarks/results/minatar_presets_tables.md, and the curves of finished runs
to minatar_presets_scores.csv there. The scores of the presets as they are typed, in async mode, are in docs/scores.md.
"""

from __future__ import annotations

import datetime

import numpy as np
from grid import Cell, finished_seeds, measure, score
from scores import Scores

from sfactory.device.machine import processor

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
    """The page."""
    page = [
        "# MinAtar presets at 5M steps", "",
        f"`python benchmarks/minatar_presets.py`, {datetime.date.today()}; lockstep with a forced lag of one update. "
        "Training return of the last tenth of the run: median and each seed. Published: PPO, training return at 5M "
        "frames.", "",
        "| preset | return | seeds | published | minutes of one core | processor |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for game, cell in cells().items():
        count = finished_seeds(cell, kept, seeds)
        found = score(cell, kept, count) if count else None
        if found is None:
            continue
        each = ", ".join(f"{value:.1f}" for value in found.final)
        columns = [f"`{cell.target}`", f"{np.median(found.final):.1f}", each, f"{PUBLISHED[game]:g}",
                   f"{found.seconds / 60:.0f}", processor()]  # fmt: skip
        page.append(f"| {' | '.join(columns)} |")
    return [*page, ""]


if __name__ == "__main__":
    measure(__doc__.splitlines()[0], "minatar_presets", cells().values(), report)
