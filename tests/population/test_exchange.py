"""Who takes over whose policy: a function of what was published. No process, no file."""

import pytest

from sfactory.config import presets
from sfactory.config.parsing import build
from sfactory.population.exchange import clearly_below, leader_of, num_replaced, taken_over, winner_of
from sfactory.population.varied import Mutated
from sfactory.run.history import Record


def published(*scores, errors=0.0):
    """A record per score; the text "failed" stands for a member that cannot go on."""
    records = [
        Record(member, 1, 100, None if score == "failed" else score, errors, {}, failed=score == "failed")
        for member, score in enumerate(scores)
    ]
    return {record.member: record for record in records}


def leaders(records, members=None, share=0.3, gap=0.0, seed=1):
    return {member: leader_of(member, records, members or len(records), share, gap, seed) for member in records}


@pytest.mark.parametrize(
    ("members", "share", "number"), [(8, 0.3, 2), (4, 0.3, 1), (4, 0.5, 2), (5, 0.5, 2), (2, 0.3, 1), (10, 0.3, 3)]
)
def test_num_replaced_is_a_share_of_the_population_but_one_at_least(members, share, number):
    assert num_replaced(members, share) == number


def test_leader_of_replaces_the_worst_by_one_of_the_best():
    found = leaders(published(5.0, 1.0, 9.0, 3.0, 8.0, 2.0, 4.0, 6.0))
    assert {member for member, leader in found.items() if leader is not None} == {1, 5}
    assert {found[1], found[5]} <= {2, 4}
    chosen = {leaders(published(5.0, 1.0, 9.0, 3.0, 8.0, 2.0, 4.0, 6.0), seed=seed)[1] for seed in range(20)}
    assert chosen == {2, 4}


def test_leader_of_works_the_same_for_negative_scores():
    found = leaders(published(-200.0, -150.0, -1300.0, -160.0))
    assert found == {0: None, 1: None, 2: 1, 3: None}
    assert leaders(published(-0.01, -0.02, -0.05, -0.03), gap=0.1) == dict.fromkeys(range(4))


def test_leader_of_needs_more_than_the_gap_and_more_than_chance():
    assert leaders(published(10.0, 9.0), gap=0.5) == {0: None, 1: 0}
    assert leaders(published(10.0, 9.0), gap=1.0) == {0: None, 1: None}
    assert leaders(published(10.0, 9.0, errors=0.3)) == {0: None, 1: 0}
    assert leaders(published(10.0, 9.0, errors=0.4)) == {0: None, 1: None}, "2 x 0.57 standard errors"
    assert not clearly_below(*published(5.0, 5.0).values(), 0.0)


def test_leader_of_waits_until_worst_and_best_cannot_overlap():
    few = published(1.0, 9.0)
    assert leaders(few, members=8) == {0: None, 1: None}, "two of eight have published; four are needed"
    found = leaders(published(1.0, 9.0, 2.0, 8.0), members=8)
    assert (found[1], found[3]) == (None, None)
    assert {found[0], found[2]} <= {1, 3}


def test_leader_of_ignores_unknown_scores_and_replaces_members_that_failed():
    found = leaders(published(None, 4.0, "failed", 5.0))
    assert found == {0: None, 1: 3, 2: 3, 3: None}
    assert leaders(published("failed", "failed")) == {0: None, 1: None}
    assert leaders(published("failed", 1.0), gap=100.0) == {0: 1, 1: None}, "the gap does not matter"


def test_taken_over_gives_the_settings_of_the_leader_mutated():
    config = build(*presets.target_layers("minatar/breakout"))
    own = Record(1, 3, 100, 1.0, 0.0, {"optim.lr": 1e-5, "trace.gamma": 0.9})
    leader = Record(0, 3, 110, 9.0, 0.0, {}, next_settings={"optim.lr": 1e-3, "trace.gamma": 0.99})
    found = taken_over(own, leader, 120, [Mutated("optim.lr")], config, 1.0, seed=1)
    assert (found.source, found.source_steps, found.settings) == (0, 120, own.settings)
    assert found.next_settings["trace.gamma"] == 0.99
    assert 6e-4 < found.next_settings["optim.lr"] < 1.6e-3
    assert found.next_settings["optim.lr"] != 1e-3
    assert taken_over(own, leader, 120, [Mutated("optim.lr")], config, 0.0, 1).next_settings == leader.next_settings


def test_winner_of_is_the_best_known_score_and_the_first_of_equals():
    assert winner_of(list(published(1.0, 3.0, None, 3.0, "failed").values())) == 1
    assert winner_of(list(published(None, "failed").values())) is None
