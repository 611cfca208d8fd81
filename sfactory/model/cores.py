"""Memory between steps. A core's state is one flat row per environment, so that slots need to know its width
only.

Legend: N environments, T steps, B lanes, F features, H width of the flat state. ``first`` is True where an
episode begins: the state is zeroed *before* that step, so nothing crosses the border of an episode.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Core(nn.Module):
    """Interface, and the core without memory: features pass through."""

    def __init__(self, features: int, size: int = 0) -> None:
        super().__init__()
        self.out_size = features
        self.state_size = 0

    def forward(self, x: Tensor, state: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """One step: x [N, F], state [N, H], first [N] bool or None -> [N, out_size], new state [N, H]."""
        return x, state

    def unroll(self, x: Tensor, state: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, B, F], state [B, H], first [T, B] bool -> [T, B, out_size], last state [B, H].

        The same calls as step by step, so that the learner recomputes what inference computed.
        """
        outputs = []
        for features, begins in zip(x.unbind(0), first.unbind(0), strict=True):
            y, state = self(features, state, begins)
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

    def forward(self, x: Tensor, state: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        state = self.cell(x, _begin(state, first).to(x.dtype))
        return state, state


class Lstm(Core):
    """Long short-term memory (Hochreiter & Schmidhuber 1997); the flat state is (output, cell), H = 2 *
    size."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__(features)
        self.cell = nn.LSTMCell(features, size)
        _orthogonal(self.cell, gates=4)
        self.out_size, self.state_size = size, 2 * size

    def forward(self, x: Tensor, state: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        output, cell = self.cell(x, _begin(state, first).to(x.dtype).chunk(2, -1))
        return output, torch.cat([output, cell], -1)


CORES: dict[str, Callable[[int, int], Core]] = {"none": Core, "gru": Gru, "lstm": Lstm}


def _begin(state: Tensor, first: Tensor | None) -> Tensor:
    """state [N, H], zero (set, not multiplied: a poisoned row is NaN) where first [N]."""
    return state if first is None else state.masked_fill(first.bool().unsqueeze(-1), 0.0)


def _orthogonal(cell: nn.RNNCellBase, gates: int) -> None:
    """Each gate's matrices orthogonal by themselves, biases zero."""
    for weight in (cell.weight_ih, cell.weight_hh):
        for block in weight.data.chunk(gates):
            nn.init.orthogonal_(block)
    for bias in (cell.bias_ih, cell.bias_hh):
        nn.init.zeros_(bias)
