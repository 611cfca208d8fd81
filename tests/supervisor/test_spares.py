"""Spare processes: started after the second kill, replaced when they are killed, ended when they are not needed."""

from types import SimpleNamespace

import pytest

from sfactory.supervisor.spares import KEEP_S, Spares

NAME = "inference"


@pytest.fixture
def spares():
    """Spares that are fakes, with the lists of those that were started and reaped."""
    started, reaped = [], []

    def start(name):
        started.append(SimpleNamespace(name=name, exit_code=None, number=len(started)))
        return started[-1]

    spares = Spares(start, reaped.append)
    spares.started, spares.reaped = started, reaped
    return spares


def storm(spares, now=0.0):
    """Two kills: from then on there is a spare."""
    spares.on_kill(NAME, now)
    spares.on_kill(NAME, now + 1.0)
    spares.check({NAME: object()}, now + 1.0)


def test_spares_start_after_the_second_kill_within_a_minute(spares):
    spares.on_kill(NAME, 0.0)
    spares.check({NAME: object()}, 0.0)
    spares.on_kill(NAME, KEEP_S)
    spares.check({NAME: object()}, KEEP_S)
    assert not spares.started, "one kill in a minute costs no memory"
    spares.on_kill(NAME, KEEP_S + 1)
    spares.check({}, KEEP_S + 1)
    assert not spares.started, "the worker itself comes first"
    for _ in range(3):
        spares.check({NAME: object()}, KEEP_S + 1)
    assert len(spares.started) == 1


def test_spares_are_taken_once_and_replaced(spares):
    assert spares.take(NAME) is None
    storm(spares)
    assert spares.take(NAME) is spares.started[0]
    assert spares.take(NAME) is None
    spares.check({NAME: object()}, 2.0)
    assert spares.take(NAME) is spares.started[1]
    assert not spares.reaped


def test_spares_that_were_killed_are_collected_and_replaced(spares):
    storm(spares)
    spares.started[0].exit_code = -9
    spares.check({NAME: object()}, 2.0)
    assert spares.reaped == spares.started[:1]
    spares.started[1].exit_code = -9
    assert spares.take(NAME) is None, "it was killed a moment ago"
    assert spares.reaped == spares.started[:2]


def test_spare_that_fails_by_itself_is_not_started_again_before_the_next_kill(spares):
    storm(spares)
    spares.started[0].exit_code = 1
    for turn in range(3):
        spares.check({NAME: object()}, 2.0 + turn)
    assert len(spares.started) == len(spares.reaped) == 1
    spares.on_kill(NAME, 5.0)
    spares.check({NAME: object()}, 5.0)
    assert len(spares.started) == 2


def test_spares_are_ended_after_a_minute_without_kills_and_at_the_end(spares):
    storm(spares)
    spares.check({NAME: object()}, 0.9 * KEEP_S)
    assert not spares.reaped
    spares.check({NAME: object()}, 1.0 + KEEP_S)
    spares.check({NAME: object()}, 1.0 + KEEP_S)
    assert spares.reaped == spares.started[:1]
    assert len(spares.started) == 1
    storm(spares, 2 * KEEP_S)
    spares.close()
    assert spares.reaped == spares.started[:2]
