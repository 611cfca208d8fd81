"""When SFPO makes fast passes (arXiv 2510.04072): until the entropy of the policy rises.

An update of SFPO with K fast passes, as in the authors' code (github.com/Urheen/SFPO, `sfpo_update_actor`):

    fast      K passes over the batch, weights theta_0 -> theta_K
    pull back theta = theta_0 + alpha * (theta_K - theta_0)
    slow      one more pass

The moments of the optimizer are those of all passes. Once the z-score of the newest entropy is at least the threshold,
alpha is 0 for the rest of the run: updates are ordinary ones, without fast passes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any


def z_score(values: Sequence[float]) -> float:
    """(last - mean) / standard deviation of the values, the last one included, as the authors compute it."""
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return (values[-1] - mean) / (deviation + 1e-9)


class SlowFast:
    """The newest entropies, one per update, and whether fast passes have stopped."""

    def __init__(self, window: int, threshold: float) -> None:
        """window: entropies that the z-score compares; nothing stops before there are as many."""
        self.threshold = threshold
        self.entropies: deque[float] = deque(maxlen=window)
        self.stopped = False

    def add(self, entropy: float) -> bool:
        """Add the entropy at the start of an update; True if this update makes fast passes.

        An entropy that is not finite is left out: the update it belongs to will be skipped.
        """
        if math.isfinite(entropy):
            self.entropies.append(entropy)
            if len(self.entropies) == self.entropies.maxlen and z_score(self.entropies) >= self.threshold:
                self.stopped = True
        return not self.stopped

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: a list of numbers and a truth value."""
        return {"entropies": list(self.entropies), "stopped": self.stopped}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; of a longer window the newest entropies."""
        self.entropies.clear()
        self.entropies.extend(map(float, state["entropies"]))
        self.stopped = bool(state["stopped"])
