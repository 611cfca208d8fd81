"""Ratings of players, and the score of a match with its interval. Plain numbers, no torch.

A score is what a player got of the points of its games: a win is 1, a draw 0.5, a loss 0.

Sources: A. E. Elo, *The Rating of Chessplayers*, 1978 (ratings, in the logistic form that is in use today);
T. Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
design", Statistics in Medicine 17, 891-908 (interval).
"""

from __future__ import annotations

import math
from statistics import NormalDist

SCALE = 400.0
"""A player this far ahead is expected to score 10 points for each point of the other."""
HALVINGS = 60  # of an interval of length 2: what is left is less than the spacing of floats


def expected_score(rating: float, other: float) -> float:
    """Score that a player is expected to have against another one, 0 to 1.

    1 / (1 + 10 ^ ((other - rating) / 400)), written so that no difference of ratings overflows.
    """
    return 0.5 + 0.5 * math.tanh(0.5 * math.log(10.0) * (rating - other) / SCALE)


def updated_ratings(rating: float, other: float, score: float, k: float = 16.0) -> tuple[float, float]:
    """Ratings of both players after a game; one gains what the other loses.

    score: of the first player, 0 to 1. k: the most that a game can change a rating by. Raises ValueError for a score
    out of range.
    """
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"score must be 0 to 1 (got {score})")
    change = k * (score - expected_score(rating, other))
    return rating + change, other - change


def rating_difference(score: float) -> float:
    """Difference of ratings at which a score is the expected one; -inf for a score of 0, inf for 1."""
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"score must be 0 to 1 (got {score})")
    if score in (0.0, 1.0):
        return math.copysign(math.inf, score - 0.5)
    return SCALE * math.log10(score / (1.0 - score))


def score_interval(wins: int, draws: int, losses: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean score of some games, and the lower and the upper end of its confidence interval.

    Tango's score interval for the difference of the probabilities to win and to lose, as a score. Without draws it is
    Wilson's interval; draws make it narrower, because they vary less. It stays within 0 to 1 and has a width also if
    all games ended alike. Games are independent. Where their probabilities differ by seat and every seat is played
    equally often, it is somewhat too wide.

    Raises ValueError for no games, negative counts, or a confidence that is not between 0 and 1.
    """
    games = wins + draws + losses
    if min(wins, draws, losses) < 0 or games == 0:
        raise ValueError(f"expected at least one game, got {wins} wins, {draws} draws and {losses} losses")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1 (got {confidence})")
    z = NormalDist().inv_cdf(0.5 + 0.5 * confidence)
    upper = _largest_difference(wins, losses, games, z)
    lower = -_largest_difference(losses, wins, games, z)
    return (wins + 0.5 * draws) / games, 0.5 + 0.5 * lower, 0.5 + 0.5 * upper


def _largest_difference(wins: int, losses: int, games: int, z: float) -> float:
    """The largest difference d of the probabilities to win and to lose that the test does not reject, -1 to 1.

    The test compares the observed difference with d, in units of its standard deviation if d is true. That deviation
    follows from the most likely probability to lose, given d: Tango's equation for it is quadratic.
    """
    low, high = (wins - losses) / games, 1.0
    for _ in range(HALVINGS):
        d = 0.5 * (low + high)
        a, b, c = 2.0 * games, (2.0 * games - wins + losses) * d - wins - losses, -losses * d * (1.0 - d)
        lose = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
        variance = games * max(2.0 * lose + d * (1.0 - d), 0.0)
        if games * d - (wins - losses) <= z * math.sqrt(variance):
            low = d
        else:
            high = d
    return high
