"""The loss with its gradient, and the choice of actions, by the kernels of `kernels.c`.

The formulas are those of `model/distributions.py`, `algo/surrogates/clipped.py` and `algo/loss.py`; tests
compare the results with autograd. Columns of a batch are read where they are: a minibatch is an index of rows.

Legend: N rows of a batch, n rows of a minibatch, K distribution parameters.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfactory.model.distributions import ActionDistribution
from sfactory.native.library import load
from sfactory.native.network import I64, MAX_PARTS, pointer

_ADDRESS, _REAL = ctypes.c_void_p, ctypes.c_double


class _Part(ctypes.Structure):
    _fields_ = [
        ("discrete", I64),
        ("size", I64),
        ("column", I64),
        ("stride", I64),
        ("place", I64),
        ("action", _ADDRESS),
    ]


class _LossInput(ctypes.Structure):
    _fields_ = [
        ("parts", I64), ("width", I64), ("part", _Part * MAX_PARTS),
        ("behavior", _ADDRESS), ("proximal", _ADDRESS), ("advantage", _ADDRESS), ("weight", _ADDRESS),
        ("target", _ADDRESS), ("old_value", _ADDRESS), ("lag", _ADDRESS), ("valid", _ADDRESS),
        ("proximal_by_row", I64), ("anchor_is_behavior", I64), ("weighted", I64),
        ("log_low", _REAL), ("log_high", _REAL), ("log_cap", _REAL), ("log_dual_clip", _REAL),
        ("value_clip", _REAL), ("value_coef", _REAL), ("entropy_coef", _REAL),
    ]  # fmt: skip


def _parts(distribution: ActionDistribution) -> _LossInput:
    """The structure with the heads of a distribution; the addresses of the actions are still to be set."""
    found = _LossInput()
    found.width = distribution.num_params
    for leaf in distribution.parts:
        column, place, stride = leaf.params.start, 0, sum(leaf.sizes)
        for size in leaf.sizes:
            part = found.part[found.parts]
            part.discrete, part.size, part.column, part.place = leaf.discrete, size, column, place
            part.stride = len(leaf.sizes) if leaf.discrete else stride
            column, place = column + size, place + 1
            found.parts += 1
    return found


def _set_actions(found: _LossInput, distribution: ActionDistribution, addresses: Mapping[str, int]) -> None:
    number = 0
    for leaf in distribution.parts:
        for _ in leaf.sizes:
            found.part[number].action = addresses[leaf.name]
            number += 1


class LossColumns(NamedTuple):
    """Columns of a batch that the loss reads: float32 [N], contiguous, unless stated otherwise."""

    action: Mapping[str, Tensor]
    """Leaf -> [N, ...] int64, or float32 for boxes."""
    behavior: Tensor
    advantage: Tensor
    weight: Tensor
    target: Tensor
    old_value: Tensor
    valid: Tensor
    """Bool."""
    proximal: Tensor | None
    """None: it is given for each minibatch, or computed from `lag`."""
    lag: Tensor | None
    """The proximal policy lies between behavior and policy by this lag (A-3PO); None: it does not."""


class NativeLoss:
    """The decoupled and the ppo objective with value loss and entropy bonus, and their gradient."""

    def __init__(
        self,
        distribution: ActionDistribution,
        *,
        anchor_is_behavior: bool,
        weighted: bool,
        log_interval: tuple[float, float],
        log_cap: float,
        log_dual_clip: float,
        value_clip: float,
        value_coef: float,
        entropy_coef: float,
    ) -> None:
        """anchor_is_behavior: the ratio is that over behavior, else over proximal. weighted: the advantage is
        multiplied by the weight of the trace. log_interval: of the trust region. log_dual_clip, value_clip: 0 is off.
        """
        self.distribution, self.library = distribution, load()
        self.input = _parts(distribution)
        assert ctypes.sizeof(_LossInput) == self.library.sf_loss_size()
        self.input.anchor_is_behavior, self.input.weighted = anchor_is_behavior, weighted
        self.input.log_low, self.input.log_high = log_interval
        self.input.log_cap, self.input.log_dual_clip = log_cap, log_dual_clip
        self.input.value_clip, self.input.value_coef, self.input.entropy_coef = value_clip, value_coef, entropy_coef
        self.address = ctypes.addressof(self.input)

    def set_entropy_coef(self, value: float) -> None:
        """Use this weight of the entropy bonus from now on."""
        self.input.entropy_coef = value

    def bind(self, columns: LossColumns) -> None:
        """Read these columns until the next call."""
        self.columns = columns  # keeps the memory
        c, i = columns, self.input
        _set_actions(i, self.distribution, {name: pointer(action) for name, action in c.action.items()})
        i.behavior, i.advantage, i.weight = pointer(c.behavior), pointer(c.advantage), pointer(c.weight)
        i.target, i.old_value, i.valid = pointer(c.target), pointer(c.old_value), pointer(c.valid)
        i.proximal = None if c.proximal is None else pointer(c.proximal)
        i.lag = None if c.lag is None else pointer(c.lag)

    def gradient(
        self, index: Tensor | None, params: Tensor, value: Tensor, proximal: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the loss of a minibatch in its outputs: of params [n, K] and value [n].

        index: [n] int64, rows of the columns; None: the first n. proximal [n]: log-probability of the minibatch's
        actions under the proximal policy, where it is not a column.
        """
        params_grad, value_grad = torch.empty_like(params), torch.empty_like(value)
        i = self.input
        i.proximal_by_row = proximal is not None
        if proximal is not None:
            i.proximal = pointer(proximal)
        rows = None if index is None else pointer(index)
        self.library.sf_loss(
            self.address, rows, len(value), pointer(params), pointer(value), pointer(params_grad), pointer(value_grad),
        )  # fmt: skip
        return params_grad, value_grad


class NativeActor:
    """Chooses actions and writes them with everything else that inference computes to the slots."""

    def __init__(self, distribution: ActionDistribution, fields: Mapping[str, np.ndarray]) -> None:
        """fields: actions by leaf, noise, log_prob, params and value in shared memory, [..., E, *]: rows in order."""
        self.library, self.input = load(), _parts(distribution)
        self.address = ctypes.addressof(self.input)
        assert all(field.flags.c_contiguous for field in fields.values()), "rows are numbered in the order of memory"
        self.fields = dict(fields)  # keeps the memory
        at = {name: field.ctypes.data for name, field in fields.items()}
        _set_actions(self.input, distribution, at)
        self.noise_width, self.noise = fields["noise"].shape[-1], at["noise"]
        self.outputs: Sequence[int] = (at["log_prob"], at["params"], at["value"])

    def act(self, rows: Tensor, count: int, params: Tensor, value: Tensor) -> None:
        """Act in `count` rows: row r of params [n, K] and value [n] is row rows[r] (int64) of every field."""
        self.library.sf_act(
            self.address, pointer(rows), count, pointer(params), pointer(value), self.noise, self.noise_width,
            *self.outputs,
        )  # fmt: skip
