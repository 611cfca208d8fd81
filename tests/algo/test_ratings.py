"""Ratings and intervals against formulas of other form, the identities they satisfy, and their exact coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfactory.algo.ratings import expected_score, rating_difference, score_interval, updated_ratings

RATINGS = st.floats(-4000, 4000)
COUNTS = st.integers(0, 300)
Z = 1.959963984540054


@given(RATINGS, RATINGS)
def test_expected_scores_of_both_players_are_one_together_and_are_elos_formula(rating, other):
    assert expected_score(rating, other) + expected_score(other, rating) == pytest.approx(1.0, abs=1e-15)
    assert expected_score(rating, other) == pytest.approx(1 / (1 + 10 ** ((other - rating) / 400)), abs=1e-14)


def test_expected_score_of_a_difference_beyond_all_floats_is_a_number():
    assert expected_score(1e300, -1e300) == 1.0
    assert expected_score(-1e300, 1e300) == 0.0


@given(RATINGS, RATINGS, st.floats(0, 1), st.floats(1, 64))
def test_updated_ratings_keep_their_sum_and_do_not_depend_on_who_is_named_first(rating, other, score, k):
    after = updated_ratings(rating, other, score, k)
    assert sum(after) == pytest.approx(rating + other, abs=1e-9)
    assert after[::-1] == pytest.approx(updated_ratings(other, rating, 1 - score, k), abs=1e-9)
    assert abs(after[0] - rating) <= k + 1e-9  # the sum is rounded


def test_updated_ratings_move_half_of_k_for_a_win_among_equals():
    assert updated_ratings(1200.0, 1200.0, 1.0) == (1208.0, 1192.0)
    assert updated_ratings(1200.0, 1200.0, 0.5) == (1200.0, 1200.0)
    assert updated_ratings(1600.0, 1200.0, 0.0, 32.0)[0] == pytest.approx(1600.0 - 32 * 10 / 11)


def test_updated_ratings_of_players_of_known_strength_come_to_their_difference():
    rng, ratings, seen = np.random.default_rng(0), (0.0, 0.0), []
    for _ in range(20_000):
        ratings = updated_ratings(*ratings, float(rng.random() < 0.75))
        seen.append(ratings[0] - ratings[1])
    assert np.mean(seen[1000:]) == pytest.approx(rating_difference(0.75), abs=8)


@given(st.floats(0.001, 0.999))
def test_rating_difference_inverts_the_expected_score(score):
    assert expected_score(rating_difference(score), 0.0) == pytest.approx(score, abs=1e-12)


def test_rating_difference_of_a_score_of_nothing_or_everything_is_infinite():
    assert (rating_difference(0.0), rating_difference(0.5), rating_difference(1.0)) == (-math.inf, 0.0, math.inf)


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_ratings_refuse_a_score_out_of_range(score):
    for function in (lambda: updated_ratings(0, 0, score), lambda: rating_difference(score)):
        with pytest.raises(ValueError, match="score must be 0 to 1"):
            function()


def wilson(wins, games):
    """Wilson 1927: the interval of a proportion."""
    p, factor = wins / games, 1 / (1 + Z * Z / games)
    half = Z * math.sqrt(p * (1 - p) / games + (Z / (2 * games)) ** 2)
    return factor * (p + Z * Z / (2 * games) - half), factor * (p + Z * Z / (2 * games) + half)


@given(COUNTS, COUNTS)
def test_score_interval_without_draws_is_that_of_wilson(wins, losses):
    if wins + losses:
        mean, low, high = score_interval(wins, 0, losses)
        assert mean == wins / (wins + losses)
        assert (low, high) == pytest.approx(wilson(wins, wins + losses), abs=1e-9)


def z_by_search(wins, draws, losses, score):
    """Distance between the result and a score, in standard deviations under the most likely chances that have it."""
    d, games = 2 * score - 1, wins + draws + losses
    low, high = max(0.0, -d), (1 - d) / 2
    for _ in range(8):  # a finer grid around the best point of the one before
        lose = np.linspace(low, high, 101)[1:-1]
        likely = wins * np.log(lose + d) + draws * np.log(1 - 2 * lose - d) + losses * np.log(lose)
        best, step = lose[likely.argmax()], (high - low) / 100
        low, high = max(low, best - step), min(high, best + step)
    return abs(wins - losses - games * d) / math.sqrt(games * (2 * best + d - d * d))


@given(COUNTS, COUNTS, COUNTS)
@settings(max_examples=50)
def test_score_interval_ends_where_the_result_is_just_not_rejected(wins, draws, losses):
    if wins and draws and losses:
        mean, low, high = score_interval(wins, draws, losses)
        assert mean == pytest.approx((wins + draws / 2) / (wins + draws + losses))
        for end in (low, high):
            assert z_by_search(wins, draws, losses, end) == pytest.approx(Z, abs=1e-3)


@given(COUNTS, COUNTS, COUNTS)
def test_score_interval_is_within_bounds_around_the_mean_and_mirrored_for_the_other_player(wins, draws, losses):
    if wins + draws + losses:
        mean, low, high = score_interval(wins, draws, losses)
        assert 0.0 <= low <= mean + 1e-12
        assert mean - 1e-12 <= high <= 1.0
        assert high - low > 0.5 / (wins + draws + losses)
        assert score_interval(losses, draws, wins) == pytest.approx((1 - mean, 1 - high, 1 - low), abs=1e-9)


def test_score_interval_is_honest_where_all_games_end_alike():
    assert score_interval(50, 0, 0) == pytest.approx((1.0, 50 / (50 + Z * Z), 1.0))
    assert score_interval(0, 0, 50) == pytest.approx((0.0, 0.0, Z * Z / (50 + Z * Z)))
    half = Z * Z / (50 + Z * Z) / 2
    assert score_interval(0, 50, 0) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_score_interval_is_narrower_with_draws_and_with_less_confidence():
    width = {draws: np.ptp(score_interval(50 - draws // 2, draws, 50 - draws // 2)[1:]) for draws in (0, 50, 90)}
    assert width[0] > 1.3 * width[50] > 1.3 * width[90]
    assert np.ptp(score_interval(50, 0, 50, 0.5)[1:]) < 0.4 * width[0]


def test_score_interval_covers_the_true_score_as_often_as_it_says():
    games = 30
    results = [(w, d, games - w - d) for w in range(games + 1) for d in range(games + 1 - w)]
    ends = np.array([score_interval(*result)[1:] for result in results])
    ways = [math.lgamma(games + 1) - sum(math.lgamma(n + 1) for n in result) for result in results]
    covered = []
    for win, draw in [(w / 20, d / 20) for w in range(21) for d in range(21 - w)]:
        chances, score = (win, draw, max(0.0, 1 - win - draw)), win + draw / 2
        inside = (ends[:, 0] - 1e-9 <= score) & (score <= ends[:, 1] + 1e-9)
        likely = np.exp(ways) * np.prod(np.power(chances, results), axis=1)
        assert likely.sum() == pytest.approx(1.0)
        covered.append(likely[inside].sum())
    assert min(covered) > 0.9
    assert 0.94 < np.mean(covered) < 0.98


def test_score_interval_covers_the_score_over_seats_with_different_chances():
    rng, seats = np.random.default_rng(1), np.array([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]])
    score, inside = float((seats[:, 0] + seats[:, 1] / 2).mean()), 0
    for _ in range(2000):
        counts = sum(rng.multinomial(50, seat) for seat in seats)
        _, low, high = score_interval(*map(int, counts))
        inside += low <= score <= high
    assert inside / 2000 > 0.94


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 2, 3)])
def test_score_interval_refuses_counts_of_no_games(counts):
    with pytest.raises(ValueError, match="at least one game"):
        score_interval(*counts)


def test_score_interval_refuses_a_confidence_of_one():
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        score_interval(1, 1, 1, 1.0)
