"""Adam (arXiv 1412.6980) by the fused kernel of torch, on flat buffers, without `torch.optim`.

The results are those of `torch.optim.Adam(fused=True)`, bit for bit. The class of torch imports the compiler with its
first optimizer: 1.7 s of CPU time at the start of every learner, for nothing that is used here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfactory.learning.flat import FlatParameters


class Adam:
    """Takes optimizer steps in place and keeps the moments of every parameter that ever had a gradient.

    A step treats the parameters as a few stretches of memory (`FlatParameters.stretches`) as long as each of them had a
    gradient in every step, and otherwise one by one: they have different numbers of steps then.
    """

    def __init__(
        self, flat: FlatParameters, lr: float | Tensor, betas: tuple[float, float], eps: float, exact: bool = False
    ) -> None:
        """lr: assign `lr` to change it; a recording of the device work needs a tensor, which is changed in place.
        exact: clip by the norm that `torch.nn.utils.clip_grad_norm_` finds, to the bit."""
        self.flat, self.lr, self.betas, self.eps = flat, lr, betas, eps
        self.parameters, self.exact = flat.parameters, exact
        # Steps taken. On the device, because a skipped step is not counted there.
        self.steps = torch.zeros(len(self.parameters), device=flat.values.device)
        self.attempts = [0] * len(self.parameters)
        """Steps with a gradient, skipped ones included, by the number of the parameter."""
        averages, squares = flat.zeros(), flat.zeros()
        self.buffers = flat.values, flat.gradient, averages, squares
        self._stretches = [*map(flat.cut, self.buffers), [self.steps[0]] * len(flat.stretches)]
        self._views = [*map(flat.views, self.buffers), list(self.steps.unbind())]
        self.moments = dict(zip(("exp_avg", "exp_avg_sq", "step"), self._views[2:], strict=True))

    def clip_and_step(self, limit: float) -> tuple[Tensor, Tensor]:
        """Scale the gradient down to a norm of at most `limit` (0: no limit) and take a step if it is finite.

        Returns the norm [] before, and [] 1.0 if the step was skipped, else 0.0.
        """
        norm = self.flat.clip_gradient(limit, by_parameter=self.exact)
        skipped = (~(norm < math.inf)).float()  # infinite or NaN
        self.step(skipped)
        return norm, skipped

    @torch.no_grad()
    def restart_count(self) -> None:
        """Begin the count of steps again and keep the moments: Adam-Rel (arXiv 2412.17113), once per objective.

        The moments are then corrected as if they were new, which makes the first steps after it shorter.
        """
        self.steps.zero_()

    @torch.no_grad()
    def step(self, skipped: Tensor) -> None:
        """One step with the gradients of the parameters. skipped: 0-dim; 1.0: change nothing.

        The kernel reads `skipped` on the device, so nothing waits for its value.
        """
        chosen = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if len(chosen) == len(self.parameters) and len(set(self.attempts)) == 1:
            self.steps.add_(1)
            self._run_kernel(self._stretches, skipped)
            self.steps.sub_(skipped)
        else:
            columns = [[column[i] for i in chosen] for column in self._views]
            torch._foreach_add_(columns[-1], 1)
            self._run_kernel(columns, skipped)
            torch._foreach_sub_(columns[-1], [skipped] * len(chosen))
        for i in chosen:
            self.attempts[i] += 1

    def _run_kernel(self, columns: Sequence[list[Tensor]], skipped: Tensor) -> None:
        """columns: values, gradients, averages, squares and steps, one tensor per stretch or parameter."""
        values, gradients, averages, squares, steps = columns
        torch._fused_adam_(
            values,
            gradients,
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

    def state_dict(self) -> dict[str, Tensor]:
        """The moments by "number of the parameter.name"; empty before the first step."""
        known = [i for i, attempts in enumerate(self.attempts) if attempts]
        return {f"{i}.{name}": self.moments[name][i] for i in known for name in ("step", "exp_avg", "exp_avg_sq")}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in the memory order of the parameters, which the kernel expects."""
        for i in range(len(self.parameters)):
            known = f"{i}.step" in state
            for name, views in self.moments.items():
                views[i].copy_(state[f"{i}.{name}"] if known else torch.zeros(()))
            self.attempts[i] = max(1, int(self.steps[i])) if known else 0
