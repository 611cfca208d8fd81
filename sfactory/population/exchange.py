"""Decide which members of a population take over the policy of which others. Pure functions.

A member is replaced if it is among the worst `share` of the population and clearly below the leader that it would take
over: by more than `gap`, and by more than chance explains (twice the standard error of the difference). Both are
absolute: a difference relative to the score has no meaning where scores are negative or near 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sfactory.config import Config
from sfactory.population.varied import SOURCE, Mutated, mutate, uniform
from sfactory.run.history import Record

ERRORS = 2.0
"""Standard errors of a difference that chance explains."""


def num_replaced(members: int, share: float) -> int:
    """Members that may be replaced in a round, and leaders: at least one, at most half of the population."""
    return max(1, min(int(members * share + 1e-9), members // 2))


def leader_of(
    member: int, published: Mapping[int, Record], members: int, share: float, gap: float, seed: int
) -> int | None:
    """The member whose policy `member` takes over; None if it goes on with its own.

    published: the newest record of every member that has one, with that of `member`. members: size of the population.
    """
    own = published[member]
    number = num_replaced(members, share)
    known = [record for record in published.values() if record.score is not None and not record.failed]
    ranked = sorted(known, key=lambda record: (-_score(record), record.member))
    leaders = [record for record in ranked[:number] if record.member != member]
    if own.failed or own.score is None:
        candidates = leaders if own.failed else []
    elif len(ranked) < 2 * number or own not in ranked[-number:]:
        candidates = []
    else:
        candidates = leaders
    if not candidates:
        return None
    leader = candidates[int(uniform(seed, member, own.round, SOURCE) * len(candidates))]
    return leader.member if own.failed or clearly_below(own, leader, gap) else None


def clearly_below(own: Record, leader: Record, gap: float) -> bool:
    """Whether a score is lower by more than `gap`, and by more than chance explains."""
    return _score(leader) - _score(own) > max(gap, ERRORS * math.hypot(own.error, leader.error))


def taken_over(
    own: Record, leader: Record, leader_steps: int, mutated: Sequence[Mutated], config: Config, rate: float, seed: int
) -> Record:
    """The record of a member that takes over a leader: the leader's settings, mutated, are its next ones."""
    settings = mutate(leader.next_settings, mutated, config, rate, seed, own.member, own.round)
    return replace(own, source=leader.member, source_steps=leader_steps, next_settings=settings)


def winner_of(records: Sequence[Record]) -> int | None:
    """Member with the best score, the first of equals; None if none is known."""
    known = [record for record in records if record.score is not None and not record.failed]
    return max(known, key=lambda record: (_score(record), -record.member)).member if known else None


def _score(record: Record) -> float:
    assert record.score is not None
    return record.score
