"""Statistics of few runs, against hand-computed numbers and slow loops."""

import numpy as np
import pytest

from sfactory.monitor.statistics import bootstrap, improvement_interval, iqm, iqm_curve, probability_of_improvement


def test_iqm_curve_equals_iqm_and_bootstrap_at_each_point():
    draws = np.random.default_rng(3)
    strata = [draws.normal(size=(6, 4)), draws.normal(2.0, size=(3, 4))]
    found = iqm_curve(strata, resamples=300, seed=7)
    for point in range(4):
        scores = [x[:, point] for x in strata]
        assert found[0, point] == pytest.approx(iqm(np.concatenate(scores)))
        assert found[1:, point] == pytest.approx(bootstrap(scores, iqm, resamples=300, seed=7))


def test_iqm_curve_resamples_whole_runs():
    """Two parallel points of the same runs: their intervals differ by the same shift."""
    one = np.random.default_rng(0).normal(size=(7, 1))
    found = iqm_curve([np.concatenate([one, one + 10.0], axis=1)])
    assert found[:, 1] == pytest.approx(found[:, 0] + 10.0)


def slow_probability(ours, theirs):
    chances = []
    for x, y in zip(ours, theirs, strict=True):
        wins = 0.0
        for a in x:
            for b in y:
                wins += 1.0 if a > b else 0.5 if a == b else 0.0
        chances.append(wins / (len(x) * len(y)))
    return sum(chances) / len(chances)


def test_probability_of_improvement_by_hand():
    ours, theirs = [np.array([1.0, 3.0])], [np.array([2.0, 3.0])]
    assert probability_of_improvement(ours, theirs) == pytest.approx((0 + 0 + 1 + 0.5) / 4)


def test_probability_of_improvement_equals_the_double_loop():
    draws = np.random.default_rng(1)
    ours = [draws.integers(0, 5, size=7), draws.integers(2, 6, size=4)]  # integers: ties happen
    theirs = [draws.integers(0, 5, size=5), draws.integers(0, 5, size=9)]
    assert probability_of_improvement(ours, theirs) == pytest.approx(slow_probability(ours, theirs))
    both = probability_of_improvement(ours, theirs) + probability_of_improvement(theirs, ours)
    assert both == pytest.approx(1.0)


def test_improvement_interval_equals_a_slow_bootstrap():
    ours, theirs = [np.array([1.0, 2.0, 5.0, 6.0]), np.array([3.0, 4.0])], [np.array([2.0, 3.0, 4.0]), np.array([3.0])]
    draws = np.random.default_rng(11)
    slow = [
        slow_probability([draws.choice(x, len(x)) for x in ours], [draws.choice(y, len(y)) for y in theirs])
        for _ in range(4000)
    ]
    found = improvement_interval(ours, theirs, resamples=4000)
    assert found == pytest.approx(np.percentile(slow, (2.5, 97.5)), abs=0.04)
