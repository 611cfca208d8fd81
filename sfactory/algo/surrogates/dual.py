"""A dual variable: the coefficient of a penalty that grows while a constraint is broken."""

from collections.abc import Mapping

import torch
from torch import Tensor


class DualVariable:
    """Dual ascent on the constraint mean(x) <= target.

        dual <- max(0, dual + rate * (mean(x) - target)) after every optimizer step that was taken

    Changed in place only: an update may be recorded.
    """

    def __init__(self, start: float, rate: float, target: float, device: torch.device) -> None:
        self.start, self.rate, self.target = start, rate, target
        self.value = torch.full((), start, dtype=torch.float64, device=device)
        self._mean = torch.full((), target, dtype=torch.float64, device=device)

    @torch.no_grad()
    def observe(self, mean: Tensor) -> None:
        """Keep mean(x) [] of the present minibatch for the step that follows."""
        self._mean.copy_(mean)

    @property
    def observed(self) -> Tensor:
        """[] what `observe` was given last."""
        return self._mean

    @torch.no_grad()
    def step(self, mean: Tensor, skipped: Tensor) -> None:
        """Move the variable by mean(x) [] of the minibatch, unless ``skipped`` [] is 1.0."""
        moved = (self.value + self.rate * (mean - self.target)).clamp(min=0.0)
        self.value.copy_(torch.where(skipped > 0, self.value, moved))

    def reset(self) -> None:
        """Return to the first value."""
        self.value.fill_(self.start)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.value.copy_(state["value"])
