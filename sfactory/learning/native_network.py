"""The learner's passes by the native kernels, with the interface of `ParallelNetwork`.

A minibatch is read in the memory of the batch: its observations are not gathered.

Legend: T steps, B lanes of the batch, b lanes of a minibatch, K distribution parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfactory.device.thread_pool import ThreadPool
from sfactory.learning.batch import BatchLanes
from sfactory.learning.flat import FlatParameters
from sfactory.learning.parallel_network import Inputs
from sfactory.model.actor_critic import ActorCritic, Output
from sfactory.native.network import NativeNetwork


def row_numbers(lanes: Tensor, steps: int, all_lanes: int) -> Tensor:
    """Rows [steps x b] of lanes [b] in a batch [steps, all_lanes], in the order of its memory."""
    if steps == 1:
        return lanes
    return (torch.arange(steps)[:, None] * all_lanes + lanes).flatten()


class NativeLearnerNetwork:
    """A network that the kernels know (`native.network.unsupported`), for training."""

    def __init__(self, model: ActorCritic, pool: ThreadPool, flat: FlatParameters) -> None:
        """flat: the parameters of the model; `backward` writes their gradients."""
        self.pool, self.flat = pool, flat
        self.live = NativeNetwork(model, pool, flat.offsets)
        self.other: NativeNetwork | None = None  # for `evaluate`
        self.model = model
        for parameter, gradient in zip(flat.parameters, flat.gradients, strict=True):
            parameter.grad = gradient
        self._leaves: tuple[Tensor, Tensor] | None = None

    def forward_eval(self, rows: Inputs) -> Output:
        """Forward pass without gradients: params [T, B, K], value [T, B]."""
        self.live.pack(self.flat.values)
        return _forward(self.live, rows, keep=False)

    def forward_train(self, rows: Inputs) -> Output:
        """Forward pass that `backward` follows, with the gradient of a loss or after `loss.backward()`."""
        self.live.pack(self.flat.values, backward=True)
        out = _forward(self.live, rows, keep=True)
        self._leaves = (out.params.requires_grad_(), out.value.requires_grad_())
        return out

    def backward(self, gradient: tuple[Tensor, Tensor] | None = None) -> None:
        """Write the gradient of every parameter to its `.grad`, for the last `forward_train`.

        gradient: of the loss with respect to params [T, B, K] and value [T, B]; None: as `loss.backward()` left it. An
        output that the loss does not use contributes nothing.
        """
        assert self._leaves is not None, "backward() follows forward_train() and a loss"
        params, value = gradient or (torch.zeros_like(x) if x.grad is None else x.grad for x in self._leaves)
        self._leaves = None
        self.live.backward(params.flatten(0, -2).contiguous(), value.flatten().contiguous(), self.flat.gradient)

    def evaluate(self, weights: Sequence[Tensor], rows: Inputs) -> Output:
        """Forward pass with other weights, in the order of the model's parameters, without gradients."""
        if self.other is None:
            self.other = NativeNetwork(self.model, self.pool)
        self.other.pack(torch.cat([x.reshape(-1) for x in weights]))
        return _forward(self.other, rows, keep=False)


def _forward(network: NativeNetwork, rows: Inputs, keep: bool) -> Output:
    lanes = rows.index if isinstance(rows, BatchLanes) else None
    whole = rows.whole if isinstance(rows, BatchLanes) else rows
    steps, all_lanes = whole.first.shape
    index = None if lanes is None else row_numbers(lanes, steps, all_lanes)
    shape = steps, all_lanes if lanes is None else len(lanes)
    leaf, name = whole.obs[network.plan.leaf].flatten(0, 1), network.model.mask
    mask = whole.obs[name].flatten(0, 1) if name else None
    params, value = network.forward(leaf, index, shape[0] * shape[1], keep, mask=mask)
    return Output(params.view(*shape, -1), value.view(shape), None)
