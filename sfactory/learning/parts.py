"""Divide a large minibatch on a GPU into parts, to limit the memory of activations.

`Update` trains part by part: forward and backward pass of one, then the next. Passes without gradient are divided too.
The division depends on sizes only, never on values. A CPU has no parts: its chunks (`parallel_network`) are small.

Legend: T steps, b lanes of a minibatch, K distribution parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfactory.learning.batch import Batch, BatchLanes
from sfactory.model.actor_critic import Output

GPU_NUMBERS = 1 << 29  # numbers of a part: 19 thousand frames of Atari, some GB of activations


def most_numbers(device: torch.device) -> int | None:
    """Most numbers in the observations of a part on a device; None: no parts."""
    return None if device.type == "cpu" else GPU_NUMBERS


def numbers_of_row(obs: Mapping[str, Tensor]) -> int:
    """Numbers in one row of observations [T, b, ...]."""
    return sum(leaf[0, 0].numel() for leaf in obs.values())


def bounds(items: int, numbers: int, most: int) -> list[int]:
    """Boundaries of parts of nearly equal size, as few as hold at most `most` numbers each.

    items: how many to divide; numbers: in each of them. An item is not divided, even if it holds more than `most`.
    """
    parts = -(-items // max(1, most // numbers))
    return [items * part // parts for part in range(parts + 1)]


def divided(rows: Batch | BatchLanes) -> list[Tensor]:
    """Lanes of the update's batch in every part of a minibatch [T, b], in their order; empty if it is not divided."""
    whole, lanes = (rows.whole, rows.index) if isinstance(rows, BatchLanes) else (rows, None)
    device, (steps, all_lanes) = whole.first.device, whole.first.shape
    most = most_numbers(device)
    if most is None:
        return []
    count = all_lanes if lanes is None else len(lanes)
    cuts = bounds(count, steps * numbers_of_row(whole.obs), most)
    if len(cuts) == 2:
        return []
    lanes = torch.arange(count, device=device) if lanes is None else lanes
    return list(lanes.tensor_split(cuts[1:-1]))


def joined(outputs: Sequence[Output]) -> Output:
    """Detached outputs of all parts together: params [T, b, K], value [T, b] and others that there are, no state."""
    parts = [x.of_rows() for x in outputs]
    return Output(**{name: torch.cat([part[name].detach() for part in parts], 1) for name in parts[0]}, state=None)
