"""Run the learner's forward and backward passes in chunks of rows, on a pool of threads.

A chunk is a few hundred rows that pass through the whole network on one thread (`device.thread_pool` gives the reason).
The division into chunks depends on the number of rows only, and gradients are summed in the order of the chunks: the
number of threads does not change a bit of the result.

Legend: T steps, B lanes, K distribution parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from sfactory.device.thread_pool import ThreadPool
from sfactory.learning.flat import FlatParameters
from sfactory.learning.parts import bounds, most_numbers, numbers_of_row
from sfactory.model.actor_critic import ActorCritic, Output

CHUNKS = 8  # of a large batch: the last one is short compared with the whole
FEW_ROWS, MANY_ROWS = 256, 512  # rows of a chunk of small observations: fewer cost more calls, more leave the cache
FEW_NUMBERS, MANY_NUMBERS = 1 << 21, 1 << 22  # numbers of a chunk of large observations: 74 frames of Atari


class Inputs(Protocol):
    """What a network reads of a batch or of a minibatch."""

    @property
    def obs(self) -> dict[str, Tensor]: ...  # [T, B, ...]
    @property
    def first(self) -> Tensor: ...  # [T, B] bool
    @property
    def state(self) -> Tensor | None: ...  # [B, H]


class ParallelNetwork:
    """A network whose passes are divided among the threads of a pool."""

    def __init__(
        self,
        model: ActorCritic,
        pool: ThreadPool,
        autocast: Callable[[], AbstractContextManager[object]],
        flat: FlatParameters,
    ) -> None:
        """flat: the parameters of the model; `backward` writes their gradients."""
        self.model, self.pool, self.autocast, self.flat = model, pool, autocast, flat
        self._chunks: list[dict[str, Tensor]] = []  # outputs of each chunk by name, with their graphs
        self._leaves: dict[str, Tensor] | None = None

    def forward_eval(self, rows: Inputs) -> Output:
        """Forward pass without gradients: params [T, B, K], value [T, B], and other outputs that the network has."""
        return self._join(self._forward(rows.obs, rows.first, rows.state, train=False), rows.first.shape)

    def forward_train(self, rows: Inputs) -> Output:
        """Forward pass with gradients: compute a loss from the result, then `loss.backward()` and `self.backward()`."""
        self._chunks = self._forward(rows.obs, rows.first, rows.state, train=True)
        detached = [{name: x.detach() for name, x in chunk.items()} for chunk in self._chunks]
        out = self._join(detached, rows.first.shape)
        self._leaves = {name: x.requires_grad_() for name, x in out.of_rows().items()}
        return out

    def backward(self, gradient: tuple[Tensor, Tensor] | None = None) -> None:
        """Write the gradient of every parameter to its `.grad`, for the last `forward_train`.

        gradient: of the loss with respect to params [T, B, K] and value [T, B]; None: as `loss.backward()` left it, and
        that of other outputs too. An output that the loss does not use contributes nothing.
        """
        assert self._leaves is not None, "backward() follows forward_train() and a loss"
        found = {name: leaf.grad for name, leaf in self._leaves.items()}
        if gradient is not None:
            found = dict(zip(("params", "value"), gradient, strict=True))
        outputs, gradients = self._used_outputs({name: x for name, x in found.items() if x is not None})

        def backward(chunk: int) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(outputs[chunk], self.flat.parameters, gradients[chunk], allow_unused=True)

        of_chunks = self.pool.map(backward, len(outputs))
        self._chunks, self._leaves = [], None
        self.flat.set_gradients(of_chunks)

    # -- division into chunks ----------------------------------------------------------------------------------------

    def _bounds(self, obs: Mapping[str, Tensor], shape: torch.Size) -> list[int]:
        """Boundaries of the chunks: in rows T x B, or in lanes for a recurrent policy."""
        steps, lanes = shape
        rows_per_item = steps if self.model.state_size else 1
        items = steps * lanes // rows_per_item
        numbers = numbers_of_row(obs)
        most = most_numbers(next(iter(obs.values())).device)
        if most is not None:
            return bounds(items, rows_per_item * numbers, most)
        few, many = min(FEW_ROWS, FEW_NUMBERS // numbers), min(MANY_ROWS, MANY_NUMBERS // numbers)
        rows = max(1, min(max(items * rows_per_item // CHUNKS, few), many))
        chunks = max(1, min(items, round(items * rows_per_item / rows)))
        return [items * chunk // chunks for chunk in range(chunks + 1)]

    def _forward(
        self, obs: Mapping[str, Tensor], first: Tensor, state: Tensor | None, train: bool
    ) -> list[dict[str, Tensor]]:
        """The outputs of every chunk, by name."""
        bounds = self._bounds(obs, first.shape)
        recurrent = bool(self.model.state_size)
        leaves = obs if recurrent else {name: leaf.flatten(0, 1) for name, leaf in obs.items()}

        def forward(chunk: int) -> dict[str, Tensor]:
            cut = slice(bounds[chunk], bounds[chunk + 1])
            with torch.set_grad_enabled(train), self.autocast():
                if recurrent:
                    chunk_state = None if state is None else state[cut]
                    chunk_obs = {name: leaf[:, cut] for name, leaf in leaves.items()}
                    out = self.model.unroll(chunk_obs, first[:, cut], chunk_state)
                else:
                    out = self.model({name: leaf[cut] for name, leaf in leaves.items()})
            return out.of_rows()

        return self.pool.map(forward, len(bounds) - 1)

    def _join(self, chunks: list[dict[str, Tensor]], shape: torch.Size) -> Output:
        columns = {name: [chunk[name] for chunk in chunks] for name in chunks[0]}
        if self.model.state_size:
            rows = {name: torch.cat(x, 1) for name, x in columns.items()}
        else:
            rows = {name: torch.cat(x).view(*shape, *x[0].shape[1:]) for name, x in columns.items()}
        return Output(**rows, state=None)

    def _used_outputs(
        self, gradients: Mapping[str, Tensor]
    ) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
        """Per chunk: the outputs the loss depends on, and their gradients, cut as the chunks were."""
        if self.model.state_size:
            sizes = [chunk["params"].shape[1] for chunk in self._chunks]
            cuts = [grad.split(sizes, 1) for grad in gradients.values()]
        else:
            sizes = [chunk["params"].shape[0] for chunk in self._chunks]
            cuts = [grad.flatten(0, 1).split(sizes) for grad in gradients.values()]
        outputs = [tuple(chunk[name] for name in gradients) for chunk in self._chunks]
        return outputs, list(zip(*cuts, strict=True))
