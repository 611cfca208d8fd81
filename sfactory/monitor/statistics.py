"""Scores of few seeds, honestly: interquartile means, bootstrap intervals, probability of improvement.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264).
A stratum is a task: whole runs are drawn anew within each, so that no task outvotes another. NumPy only.

Shapes: n_i runs of task i, P points of a curve, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)  # of a 95 % interval


def iqm(scores: np.ndarray, axis: int | None = None) -> Any:
    """Interquartile mean: the mean without the lowest and highest quarter (rounded down), as in rliable."""
    ordered = np.sort(scores, axis=axis)
    count = ordered.shape[-1 if axis is None else axis]
    cut = int(0.25 * count)
    return np.take(ordered, range(cut, count - cut), axis=-1 if axis is None else axis).mean(axis=axis)


def bootstrap(
    strata: Sequence[np.ndarray], statistic: Callable[..., Any], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of `statistic` over all scores, resampled within each stratum (task).

    strata: one [n_i] array per task. statistic: takes (scores [R, sum n_i], axis=1) and returns [R].
    """
    draws = np.random.default_rng(seed)
    columns = [x[draws.integers(len(x), size=(resamples, len(x)))] for x in map(np.asarray, strata)]
    low, high = np.percentile(statistic(np.concatenate(columns, axis=1), axis=1), _PERCENTILES)
    return float(low), float(high)


def iqm_curve(strata: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """[3, P]: the IQM over runs at each point of their curves, and its 95 % interval.

    strata: one [n_i, P] array per task. A run is drawn whole: the same draw serves every point.
    """
    curves = [np.asarray(x, float) for x in strata]
    draws = np.random.default_rng(seed)
    chosen = [draws.integers(len(x), size=(resamples, len(x))) for x in curves]
    found = np.empty((3, curves[0].shape[1]))
    for point in range(found.shape[1]):  # point by point: all at once would be R x runs x P numbers
        scores = [x[:, point] for x in curves]
        resampled = np.concatenate([x[rows] for x, rows in zip(scores, chosen, strict=True)], axis=1)
        found[0, point] = iqm(np.concatenate(scores))
        found[1:, point] = np.percentile(iqm(resampled, axis=1), _PERCENTILES)
    return found


def probability_of_improvement(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """How likely a run of ours beats one of theirs on the same task; a tie is half a win, the mean over tasks.

    ours, theirs: one [n_i] and one [m_i] array per task, in the same order.
    """
    wins = [_wins(np.asarray(x, float), np.asarray(y, float)).mean() for x, y in zip(ours, theirs, strict=True)]
    return float(np.mean(wins))


def improvement_interval(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `probability_of_improvement`: runs of both sides are drawn anew within each task."""
    draws = np.random.default_rng(seed)
    found = np.zeros(resamples)
    for x, y in zip(map(np.asarray, ours), map(np.asarray, theirs), strict=True):
        won = _wins(np.asarray(x, float), np.asarray(y, float))  # [n, m]: who won does not change when drawn again
        rows = draws.integers(len(x), size=(resamples, len(x), 1))
        columns = draws.integers(len(y), size=(resamples, 1, len(y)))
        found += won[rows, columns].mean(axis=(1, 2)) / len(ours)
    low, high = np.percentile(found, _PERCENTILES)
    return float(low), float(high)


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n, m]: 1 where x beats y, 0.5 where they tie."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)
