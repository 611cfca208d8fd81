"""Policy lag as metrics: updates between acting and learning."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

from sfactory.monitor.table import LAG_SHARES

LagCounts = Mapping[int, int]
"""Lag in updates -> number of steps with it. A few entries, however many steps."""


def lag_row(
    counts: Mapping[str, LagCounts], replayed: LagCounts | None = None, of_job: LagCounts | None = None
) -> dict[str, float]:
    """Mean, 95th percentile and maximum of all steps and of each worker's, and the histogram over all steps.

    counts: by worker. replayed: steps that were trained on again; they count among all steps only. of_job: of all steps
    of all ranks, those that were trained on again among them, where there are several ranks.
    """
    all_counts: Counter[int] = Counter()
    for some in [of_job] if of_job else [*counts.values(), replayed or {}]:
        all_counts.update(some)
    row: dict[str, float] = {}
    for suffix, lags in {"": all_counts, **{f"/{worker}": lags for worker, lags in counts.items()}}.items():
        if lags:
            row[f"lag/mean{suffix}"] = mean(lags)
            row[f"lag/p95{suffix}"] = percentile(lags, 95)
            row[f"lag/max{suffix}"] = float(max(lags))
    return row | _shares(all_counts)


def mean(counts: LagCounts) -> float:
    """Mean lag of all steps; there is at least one."""
    return sum(lag * steps for lag, steps in counts.items()) / sum(counts.values())


def percentile(counts: LagCounts, percent: float) -> float:
    """`numpy.percentile` of the values that `counts` counts, to the bit, without a list of them all."""
    last = sum(counts.values()) - 1
    position = last * (percent / 100)
    below = math.floor(position)
    low, high = _at(counts, below), _at(counts, min(below + 1, last))
    weight = position - below
    # The two forms differ in the last bit; numpy takes the one that is exact at the nearer end.
    return high - (high - low) * (1 - weight) if weight >= 0.5 else low + (high - low) * weight


def _at(counts: LagCounts, index: int) -> int:
    """The value at this index if all were sorted."""
    for value in sorted(counts):
        index -= counts[value]
        if index < 0:
            return value
    raise IndexError


def _shares(counts: LagCounts) -> dict[str, float]:
    """Fractions of steps by bins of their lag; empty without steps."""
    if not counts:
        return {}
    edges = [int(name) for name in LAG_SHARES if name.isdigit()]
    bins = [0] * len(LAG_SHARES)
    for lag, steps in counts.items():
        bins[bisect_left(edges, lag)] += steps
    return {f"lag/share_{name}": steps / sum(bins) for name, steps in zip(LAG_SHARES, bins, strict=True)}
