"""Clipping and Adam as one native call; see `adam.Adam` for the meaning of everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfactory.learning.adam import Adam
from sfactory.native.library import load
from sfactory.native.network import pointer


class NativeAdam(Adam):
    """Adam on a CPU. The norm is summed in float64 over the whole gradient, in the order of its memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kernel, self._addresses = load().sf_adam, tuple(map(pointer, self.buffers))
        self._taken: float | None = 0.0
        """Steps taken, if the number is the same for all parameters; it saves reading `steps`."""

    def restart_count(self) -> None:
        super().restart_count()
        self._taken = 0.0

    @torch.no_grad()
    def clip_and_step(self, limit: float) -> tuple[Tensor, Tensor]:
        if self._taken is None:  # moments of a run in which some parameters had no gradient
            return super().clip_and_step(limit)
        step, (beta1, beta2) = self._taken + 1.0, self.betas
        assert isinstance(self.lr, float)
        norm = self._kernel(
            *self._addresses, self.flat.values.numel(), limit, self.lr, beta1, beta2, self.eps,
            1.0 - beta1**step, 1.0 - beta2**step,
        )  # fmt: skip
        finite = norm - norm == 0.0
        if finite:
            self._taken = step
            self.steps.fill_(step)
        self.attempts = [attempts + 1 for attempts in self.attempts]
        return torch.tensor(norm, dtype=torch.float32), torch.tensor(0.0 if finite else 1.0)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict(state)
        taken = self.steps.unique()
        self._taken = float(taken[0]) if len(taken) == 1 else None
