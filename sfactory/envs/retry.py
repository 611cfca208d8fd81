"""Try something again that may fail for a moment only: building and resetting an environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_PAUSE_S = 0.05
BEAT_S = 1.0  # longest pause without a call of `beat`
START_S = 2.0
"""For the first reset of an environment, and for a build after one that worked: a flaky one needs a few tries, and one
that always fails should end the command quickly."""
REPLACE_S = 30.0
"""For the replacement of an environment in a running group: a simulator may hold its port or license for a while."""


def retried(
    attempt: Callable[[], T],
    seconds: float,
    beat: Callable[[], None] = lambda: None,
    transient: Callable[[Exception], bool] = lambda error: True,
) -> T:
    """Call `attempt` until it raises nothing, with pauses that double; raise its last error after `seconds`.

    beat: called before every attempt and at least once a second between them.
    transient: whether an error may be gone at the next attempt; others are raised at once.
    """
    end, pause = time.monotonic() + seconds, FIRST_PAUSE_S
    while True:
        beat()
        try:
            return attempt()
        except Exception as error:
            left = end - time.monotonic()
            if left <= 0 or not transient(error):
                raise
        _wait(min(pause, left), beat)
        pause *= 2


def _wait(seconds: float, beat: Callable[[], None]) -> None:
    while seconds > 0:
        time.sleep(min(seconds, BEAT_S))
        seconds -= BEAT_S
        beat()
