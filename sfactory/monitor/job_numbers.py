"""Combine the numbers of all ranks of a job: the last episodes, and the lag of an update. No torch.

Each rank fills a vector of the same size. Every number in it is written by one rank, the others leave it at 0, so that
the sum of the vectors holds what all of them have written, to the bit:

    last episodes   [tasks + 1, 100]            returns by task, then lengths; rank r of W has the columns
                                                100 r // W to 100 (r + 1) // W, for the newest episodes it knows
    of each rank    [W, 2 + tasks + 1 + LAG]    count, complete, columns in use by row, lags

The training return of a job is therefore the mean of 100 episodes, equally many of each rank.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from sfactory.device.ranks import Ranks
from sfactory.monitor.episodes import Episodes
from sfactory.monitor.lag import LagCounts
from sfactory.monitor.table import EPISODES_IN_MEAN

EXACT_LAGS = 17
"""Lags 0 to 16 have counts of their own. Of larger ones only number, mean and maximum are exact."""
LAG = EXACT_LAGS + 3
"""Numbers for lags: counts of these lags; steps with a larger one, the sum of their lags, and the largest."""
_TOTALS = 2


class OfJob(NamedTuple):
    """Episodes and lags of all ranks of a job."""

    episodes: dict[str, Any]
    """State of `Episodes`."""
    lags: LagCounts
    """Lag in updates -> number of steps with it, of one update."""


class JobNumbers:
    """Builds the vector of one rank, and reads the sum of those of all ranks."""

    def __init__(self, ranks: Ranks, num_tasks: int) -> None:
        self.ranks, self.rows = ranks, num_tasks + 1
        self._columns = [_columns(rank, ranks.world_size) for rank in range(ranks.world_size)]
        self._of_rank = _TOTALS + self.rows + LAG
        self.size = self.rows * EPISODES_IN_MEAN + ranks.world_size * self._of_rank

    def own(self, episodes: Episodes, lags: LagCounts) -> np.ndarray:
        """The vector [size] float64 of this rank. episodes: its own. lags: of the steps that it trains on next."""
        numbers = np.zeros(self.size)
        windows, of_rank = self._parts(numbers)
        columns, own = self._columns[self.ranks.rank], of_rank[self.ranks.rank]
        own[:_TOTALS] = episodes.count, episodes.complete
        for row, values in enumerate((*episodes.returns, episodes.lengths)):
            newest = list(values)[-len(columns) :] if columns else []
            windows[row, columns.start : columns.start + len(newest)] = newest
            own[_TOTALS + row] = len(newest)
        own[-LAG:] = _lag_numbers(lags)
        return numbers

    def read(self, numbers: np.ndarray) -> OfJob:
        """Episodes and lags of the job, from the sum [size] of all vectors."""
        windows, of_rank = self._parts(numbers)
        merged: list[list[float]] = [[] for _ in range(self.rows)]
        lags: Counter[int] = Counter()
        for columns, found in zip(self._columns, of_rank, strict=True):
            for row, values in enumerate(merged):
                values += windows[row, columns.start : columns.start + int(found[_TOTALS + row])].tolist()
            lags.update(_lag_counts(found[-LAG:]))
        episodes = {
            "count": int(of_rank[:, 0].sum()),
            "complete": bool(of_rank[:, 1].all()),
            "returns": merged[:-1],
            "lengths": [int(length) for length in merged[-1]],
        }
        return OfJob(episodes, dict(lags))

    def _parts(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of the last episodes [tasks + 1, 100], and of what each rank has for itself [W, ...]."""
        end = self.rows * EPISODES_IN_MEAN
        return numbers[:end].reshape(self.rows, -1), numbers[end:].reshape(-1, self._of_rank)


def _columns(rank: int, world_size: int) -> range:
    return range(EPISODES_IN_MEAN * rank // world_size, EPISODES_IN_MEAN * (rank + 1) // world_size)


def _lag_numbers(lags: LagCounts) -> np.ndarray:
    """[LAG]"""
    numbers = np.zeros(LAG)
    for lag, steps in lags.items():
        if lag < EXACT_LAGS:
            numbers[lag] += steps
        else:
            numbers[EXACT_LAGS:] += steps, steps * lag, 0.0
    numbers[-1] = max(lags, default=0)
    return numbers


def _lag_counts(numbers: np.ndarray) -> LagCounts:
    """The inverse; of larger lags one step has the largest, and all others have their mean, rounded down or up."""
    counts = Counter({lag: steps for lag, steps in enumerate(map(int, numbers[:EXACT_LAGS])) if steps})
    steps, total, largest = map(int, numbers[EXACT_LAGS:])
    if steps:
        counts[largest] += 1
    if steps > 1:
        mean, above = divmod(total - largest, steps - 1)
        counts[mean] += steps - 1 - above
        counts[mean + 1] += above
    return +counts
