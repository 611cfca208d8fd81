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
from collections.abc import Mapping

import torch
from torch import Tensor


def z_score(values: Tensor) -> float:
    """(last - mean) / standard deviation of values [n], the last one included, as the authors compute it."""
    return float((values[-1] - values.mean()) / (values.std(correction=0) + 1e-9))


class SlowFast:
    """The newest entropies, and whether fast passes have stopped."""

    def __init__(self, window: int, threshold: float) -> None:
        """window: entropies that the z-score compares, one per update; nothing stops before there are as many."""
        self.threshold = threshold
        # Tensors, because the parts of a checkpoint are; the newest entropy is the last.
        self.entropies = torch.zeros(window, dtype=torch.float64)
        self.known = torch.zeros((), dtype=torch.int64)
        self.stopped = torch.zeros((), dtype=torch.bool)

    def add(self, entropy: float) -> bool:
        """Add the entropy at the start of an update; True if this update makes fast passes.

        An entropy that is not finite is left out: the update it belongs to will be skipped.
        """
        if math.isfinite(entropy):
            self.entropies.copy_(torch.cat([self.entropies[1:], self.entropies.new_tensor([entropy])]))
            self.known.add_(1)
            if self.known >= len(self.entropies) and z_score(self.entropies) >= self.threshold:
                self.stopped.fill_(True)
        return not self.stopped

    def state_dict(self) -> dict[str, Tensor]:
        return {f"sfpo.{name}": getattr(self, name) for name in ("entropies", "known", "stopped")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, also of another window; nothing if SFPO was off."""
        if "sfpo.known" not in state:
            return
        old, window = state["sfpo.entropies"].to(self.entropies.dtype), len(self.entropies)
        kept = old[-window:]
        self.entropies.zero_()[window - len(kept) :] = kept
        self.known.fill_(min(int(state["sfpo.known"]), len(old)))
        self.stopped.copy_(state["sfpo.stopped"])
