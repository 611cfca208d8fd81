"""Clipping and Adam as one native call; see `adam.Adam` for the meaning of everything."""

from __future__ import annotations

import torch
from torch import Tensor

from sfactory.learning.adam import Adam
from sfactory.native.library import load
from sfactory.native.network import pointer


class NativeAdam(Adam):
    """Adam on a CPU. The norm is summed in float64 over the whole gradient, in the order of its memory."""

    @torch.no_grad()
    def clip_and_step(self, limit: float) -> tuple[Tensor, Tensor]:
        taken = self.steps.unique()
        if len(taken) != 1:  # moments of a run in which some parameters had no gradient
            return super().clip_and_step(limit)
        step, (beta1, beta2) = float(taken[0]) + 1.0, self.betas
        assert isinstance(self.lr, float)
        norm = load().sf_adam(
            *map(pointer, self.buffers), self.flat.values.numel(), limit, self.lr, beta1, beta2, self.eps,
            1.0 - beta1**step, 1.0 - beta2**step,
        )  # fmt: skip
        found, skipped = torch.tensor(norm, dtype=torch.float32), torch.tensor(float(norm - norm != 0.0))
        self.steps.add_(1.0 - skipped)
        self.attempts = [attempts + 1 for attempts in self.attempts]
        return found, skipped
