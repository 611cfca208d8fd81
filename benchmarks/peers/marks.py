"""The speed of a training loop, from the times at which its number of steps grew. Standard library only."""

from __future__ import annotations

import itertools
import statistics

WARM_UP_S = 4.0
STRETCHES, FEWEST = 5, 3
LONGER_S = 120.0  # a slow machine goes on for up to this much longer, until there are FEWEST stretches


class Marks:
    """Times and steps of a run; the first WARM_UP_S seconds are not counted."""

    def __init__(self, seconds: float) -> None:
        """seconds: how long the run is measured, longer if its marks are rare."""
        self.seconds = seconds
        self.all: list[tuple[float, int]] = []

    def add(self, now: float, steps: int) -> None:
        """Note the number of steps so far. Without more steps than before nothing is noted."""
        if steps > (self.all[-1][1] if self.all else 0):
            self.all.append((now, steps))

    def enough(self, now: float) -> bool:
        """Whether the run is measured, or has run LONGER_S more than it should."""
        if not self.all:
            return False
        counted = self._counted()
        measured = len(counted) > FEWEST and counted[-1][0] - counted[0][0] >= self.seconds
        return measured or now - self.all[0][0] > WARM_UP_S + self.seconds + LONGER_S

    def speed(self) -> float:
        """Steps per second: the median of up to STRETCHES stretches. Raises RuntimeError with fewer than FEWEST."""
        counted = self._counted()
        count = min(STRETCHES, len(counted) - 1)
        if count < FEWEST:
            raise RuntimeError(f"{len(counted)} rollouts after the warm-up, {FEWEST + 1} are needed; use smaller ones")
        bounds = [counted[number * (len(counted) - 1) // count] for number in range(count + 1)]
        return statistics.median((n1 - n0) / (t1 - t0) for (t0, n0), (t1, n1) in itertools.pairwise(bounds))

    def _counted(self) -> list[tuple[float, int]]:
        return [mark for mark in self.all if mark[0] - self.all[0][0] >= WARM_UP_S]
