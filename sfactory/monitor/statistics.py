"""Statistics of few runs: interquartile mean, bootstrap intervals, probability of improvement.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264).
A stratum is a task: whole runs are resampled within each task, so that every task has the same weight. NumPy only.

Shapes: n_i runs of task i, P points of a curve, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)  # of a 95 % interval


def human_normalized(score: float, reference: tuple[float, float]) -> float:
    """Score on the scale 0 = random policy, 1 = human tester. reference: returns of both."""
    random, human = reference
    return (score - random) / (human - random)


def spread(returns: Sequence[float]) -> dict[str, float]:
    """Standard deviation (of these values, not of a larger population), minimum and maximum by name."""
    values = np.asarray(returns, float)
    return {"std": float(values.std()), "min": float(values.min()), "max": float(values.max())}


def iqm(scores: np.ndarray, axis: int | None = None) -> Any:
    """Interquartile mean: the mean without the lowest and the highest quarter (rounded down), as in rliable."""
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

    strata: one [n_i, P] array per task. Whole runs are resampled: the same sample is used at every point.
    """
    curves = [np.asarray(x, float) for x in strata]
    draws = np.random.default_rng(seed)
    chosen = [draws.integers(len(x), size=(resamples, len(x))) for x in curves]
    result = np.empty((3, curves[0].shape[1]))
    for point in range(result.shape[1]):  # point by point: all at once would be R x runs x P numbers
        scores = [x[:, point] for x in curves]
        resampled = np.concatenate([x[rows] for x, rows in zip(scores, chosen, strict=True)], axis=1)
        result[0, point] = iqm(np.concatenate(scores))
        result[1:, point] = np.percentile(iqm(resampled, axis=1), _PERCENTILES)
    return result


def probability_of_improvement(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> float:
    """Probability that a run of x scores higher than a run of y on the same task; mean over tasks.

    A tie counts one half. x, y: one [n_i] and one [m_i] array per task, in the same order.
    """
    wins = [_wins(np.asarray(a, float), np.asarray(b, float)).mean() for a, b in zip(x, y, strict=True)]
    return float(np.mean(wins))


def improvement_interval(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `probability_of_improvement`: runs of both are resampled within each task."""
    draws = np.random.default_rng(seed)
    probabilities = np.zeros(resamples)
    for a, b in zip(map(np.asarray, x), map(np.asarray, y), strict=True):
        wins = _wins(np.asarray(a, float), np.asarray(b, float))  # [n, m]; resampling only selects from it
        rows = draws.integers(len(a), size=(resamples, len(a), 1))
        columns = draws.integers(len(b), size=(resamples, 1, len(b)))
        probabilities += wins[rows, columns].mean(axis=(1, 2)) / len(x)
    low, high = np.percentile(probabilities, _PERCENTILES)
    return float(low), float(high)


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n, m]: 1 where x is higher than y, 0.5 where they are equal."""
    return (x[:, None] > y) + 0.5 * (x[:, None] == y)
