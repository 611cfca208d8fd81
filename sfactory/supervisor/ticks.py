"""Time as a process sees it that waits for others: in ticks, without the time in which it was stopped itself."""

from __future__ import annotations

import time

TICK_S = 0.1
"""Between two looks at what is waited for."""
LONGEST_TICK_S = 1.0
"""The most that one tick counts: time limits pause while everything is stopped (SIGSTOP, a suspended laptop)."""
STACK_DUMP_S = 0.2
"""For a process to write its stacks before it is killed."""


class Ticks:
    """Measures the time between two calls of `passed`."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def passed(self) -> float:
        """Seconds since the last call, at most LONGEST_TICK_S."""
        now = time.monotonic()
        seconds, self._last = min(now - self._last, LONGEST_TICK_S), now
        return seconds
