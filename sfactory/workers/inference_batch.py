"""Batches of the inference worker: stage the rows of the waiting groups, run a forward pass, return its outputs.

On the CPU the rows are staged where the network reads them. On a GPU, large leaves are copied directly from shared
memory where it can be registered; small leaves are staged in pinned memory and copied once per batch. The number of
groups is rounded up to a bucket, so that few shapes occur, and the pass of each bucket, copies included, is recorded
once as a graph and replayed: one launch instead of fifty.

Legend: G groups, E environments per group; rows are [G * E, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sfactory.device.accelerator import DIRECT_BYTES, WARM, Accelerator, NotRecordable

Forward = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Named input rows [n, ...] -> named output rows [n, ...], with the current weights. Rows are independent."""


class InferenceBatch(Protocol):
    """`stage` the rows of every waiting group in its place, then `run` the batch."""

    def stage(self, name: str, place: int, rows: np.ndarray) -> None:
        """Stage the rows [E, ...] of a leaf for the group in this place. They must not change before `run` returns."""

    def run(self, groups: int) -> dict[str, np.ndarray]:
        """Outputs for the first `groups` places, [groups * E, ...]; valid until the next call."""


class CpuBatch:
    """A batch on the CPU."""

    def __init__(self, forward: Forward, inputs: Mapping[str, np.ndarray], group_size: int) -> None:
        """inputs: zeros for the rows of every leaf, for all groups, [G * E, ...]."""
        self.forward, self.E = forward, group_size
        self.rows = dict(inputs)
        self.tensors = {name: torch.from_numpy(rows) for name, rows in inputs.items()}

    def stage(self, name: str, place: int, rows: np.ndarray) -> None:
        self.rows[name][place * self.E : place * self.E + self.E] = rows

    def run(self, groups: int) -> dict[str, np.ndarray]:
        outputs = self.forward({name: tensor[: groups * self.E] for name, tensor in self.tensors.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}


class GpuBatch:
    """A batch on an accelerator."""

    def __init__(
        self,
        forward: Forward,
        inputs: Mapping[str, np.ndarray],
        group_size: int,
        accelerator: Accelerator,
        *,
        direct: bool,
        whole: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """direct: the accelerator can read the arrays given to `stage`. whole: use one bucket of all groups. log:
        receives a line when the batch falls back to a slower method."""
        self.forward, self.E, self.accelerator, self.log = forward, group_size, accelerator, log
        groups = len(next(iter(inputs.values()))) // group_size
        self.buckets = [groups] if whole else buckets(groups)
        device = accelerator.device
        self.device = {name: torch.zeros_like(torch.from_numpy(x), device=device) for name, x in inputs.items()}
        self.staged = {
            name: accelerator.pinned(torch.from_numpy(rows))
            for name, rows in inputs.items()
            if not (direct and rows.nbytes // groups >= DIRECT_BYTES)
        }
        self.outputs: dict[str, Tensor] = {}
        self.replays: dict[int, Callable[[], None]] = {}
        self.prepare()

    def prepare(self) -> None:
        """Record the pass of every bucket, largest first. If that is impossible, log it and launch each operation."""
        for bucket in reversed(self.buckets):
            work = partial(self._pass, bucket * self.E)
            for _ in range(WARM):
                self.accelerator.run(work)
                self.accelerator.wait()
            try:
                self.replays[bucket] = self.accelerator.record(work)
            except NotRecordable as error:
                self.log(f"inference is not recorded: {error}")
                return

    def stage(self, name: str, place: int, rows: np.ndarray) -> None:
        target = slice(place * self.E, place * self.E + self.E)
        if name in self.staged:
            self.staged[name].numpy()[target] = rows
        else:
            self.accelerator.copy(self.device[name][target], torch.from_numpy(rows))

    def run(self, groups: int) -> dict[str, np.ndarray]:
        bucket = next(size for size in self.buckets if size >= groups)
        used, rows = groups * self.E, bucket * self.E
        if used < rows:
            self._clear(used, rows)
        if bucket in self.replays:
            self.replays[bucket]()
        else:
            self.accelerator.run(partial(self._pass, rows))
        self.accelerator.wait()
        return {name: output[:used].numpy() for name, output in self.outputs.items()}

    def _clear(self, used: int, rows: int) -> None:
        """Zero the padding, which may hold rows of earlier batches."""
        for name, tensor in self.device.items():
            if name in self.staged:
                self.staged[name][used:rows].zero_()
            else:
                self.accelerator.run(tensor[used:rows].zero_)

    def _pass(self, rows: int) -> None:
        """Upload, forward pass and download of the first `rows` rows."""
        for name, host in self.staged.items():
            self.accelerator.copy(self.device[name][:rows], host[:rows])
        outputs = self.forward({name: tensor[:rows] for name, tensor in self.device.items()})
        if not self.outputs:  # the largest bucket is the first
            self.outputs = {
                name: self.accelerator.pinned(torch.empty_like(x, device="cpu")) for name, x in outputs.items()
            }
        for name, output in outputs.items():
            self.accelerator.copy(self.outputs[name][:rows], output)


def buckets(groups: int) -> list[int]:
    """Batch sizes in groups: the powers of two below `groups`, and `groups`."""
    sizes = [1 << power for power in range(groups.bit_length()) if 1 << power < groups]
    return [*sizes, groups]
