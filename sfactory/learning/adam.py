"""Adam (arXiv 1412.6980) by the fused kernel of torch, without `torch.optim`.

The results are those of `torch.optim.Adam(fused=True)`, bit for bit. The class of torch imports the compiler with its
first optimizer: 1.7 s of CPU time at the start of every learner, for nothing that is used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """The state of one parameter."""

    step: Tensor
    """0-dim: steps taken. On the device, because a skipped step is not counted there."""
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Adam:
    """Takes optimizer steps in place and keeps the moments of every parameter that ever had a gradient."""

    def __init__(
        self, parameters: Sequence[Tensor], lr: float | Tensor, betas: tuple[float, float], eps: float
    ) -> None:
        """lr: assign `lr` to change it; a recording of the device work needs a tensor, which is changed in place."""
        self.parameters, self.lr, self.betas, self.eps = list(parameters), lr, betas, eps
        self.moments: dict[int, Moments] = {}  # by the number of the parameter

    @torch.no_grad()
    def step(self, skipped: Tensor) -> None:
        """One step with the gradients of the parameters. skipped: 0-dim; 1.0: change nothing.

        The kernel reads `skipped` on the device, so nothing waits for its value.
        """
        chosen = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        moments = [self.moments.get(i) or self._start(i) for i in chosen]
        steps, averages, squares = (list(column) for column in zip(*moments, strict=True))
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            [self.parameters[i] for i in chosen],
            [gradient for i in chosen if (gradient := self.parameters[i].grad) is not None],
            averages,
            squares,
            [],
            steps,
            amsgrad=False,
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
            found_inf=skipped,
        )
        torch._foreach_sub_(steps, [skipped] * len(steps))

    def _start(self, index: int) -> Moments:
        parameter = self.parameters[index]
        self.moments[index] = moments = Moments(
            torch.zeros((), dtype=torch.float32, device=parameter.device),
            torch.zeros_like(parameter),
            torch.zeros_like(parameter),
        )
        return moments

    def state_dict(self) -> dict[str, Tensor]:
        """The moments by "number of the parameter.name"; empty before the first step."""
        return {f"{i}.{name}": value for i, one in self.moments.items() for name, value in one._asdict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in the memory order of the parameters, which the kernel expects."""
        self.moments = {}
        for index in sorted({int(key.split(".", 1)[0]) for key in state}):
            for name, value in self._start(index)._asdict().items():
                value.copy_(state[f"{index}.{name}"])
