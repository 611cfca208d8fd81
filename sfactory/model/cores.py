"""Recurrent cores. The state is one flat row per environment, so that slots depend on its width only.

Legend: N environments, T steps, B lanes, F features, H width of the flat state. ``first`` is True at the first step of
an episode: the state is zeroed *before* that step, so nothing passes from one episode to the next. ``acting`` is False
where the agent only waits: the state is kept, as if the step were not there. None: every row acts.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Core(nn.Module):
    """Interface of cores; also the core without memory, which returns the features unchanged."""

    def __init__(self, features: int, size: int = 0) -> None:
        super().__init__()
        self.out_size = features
        self.state_size = 0

    def forward(
        self, x: Tensor, state: Tensor, first: Tensor | None, acting: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run one step: x [N, F], state [N, H] -> [N, out_size], new state [N, H]; first, acting [N] bool or None."""
        state = _reset_state(state, first).to(x.dtype)
        y, new = self._cell(x, state)
        return y, new if acting is None else torch.where(acting.unsqueeze(-1), new, state)

    def _cell(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return x, state

    def unroll(self, x: Tensor, state: Tensor, first: Tensor, acting: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run T steps: x [T, B, F], state [B, H], first, acting [T, B] bool -> [T, B, out_size], last state [B, H].

        Makes the same calls as single steps, so that the learner reproduces the numbers of inference.
        """
        outputs = []
        for t, (features, first_row) in enumerate(zip(x.unbind(0), first.unbind(0), strict=True)):
            y, state = self(features, state, first_row, None if acting is None else acting[t])
            outputs.append(y)
        return torch.stack(outputs), state

    def initial_state(self, num: int) -> Tensor:
        """[num, H] zeros, on the core's device."""
        parameter = next(self.parameters(), torch.empty(0))
        return torch.zeros(num, self.state_size, device=parameter.device)


class Gru(Core):
    """Gated recurrent unit (Cho et al. 2014); H = size."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__(features)
        self.cell = nn.GRUCell(features, size)
        _orthogonal(self.cell, gates=3)
        self.out_size = self.state_size = size

    def _cell(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(x, state)
        return state, state


class Lstm(Core):
    """Long short-term memory (Hochreiter & Schmidhuber 1997); the flat state is (output, cell), H = 2 * size."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__(features)
        self.cell = nn.LSTMCell(features, size)
        _orthogonal(self.cell, gates=4)
        self.out_size, self.state_size = size, 2 * size

    def _cell(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        output, cell = self.cell(x, state.chunk(2, -1))
        return output, torch.cat([output, cell], -1)


CORES: dict[str, Callable[[int, int], Core]] = {"none": Core, "gru": Gru, "lstm": Lstm}


def _reset_state(state: Tensor, first: Tensor | None) -> Tensor:
    """state [N, H] with rows set to zero where first [N]; not multiplied, because unused rows may be NaN."""
    return state if first is None else state.masked_fill(first.bool().unsqueeze(-1), 0.0)


def _orthogonal(cell: nn.RNNCellBase, gates: int) -> None:
    """Initialise the matrices of each gate orthogonally, biases with zero."""
    for weight in (cell.weight_ih, cell.weight_hh):
        for block in weight.data.chunk(gates):
            nn.init.orthogonal_(block)
    for bias in (cell.bias_ih, cell.bias_hh):
        nn.init.zeros_(bias)
