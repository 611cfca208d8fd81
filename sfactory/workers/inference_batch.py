"""The inference worker's passes: rows of the waiting groups in, actions and what belongs to them out.

On the CPU the rows lie where the network reads them. Before a GPU they take the shortest way: large leaves straight
from the shared memory where it may be registered, the small ones side by side through pinned memory in one copy each.
There the number of groups is rounded up to a bucket, so that few shapes occur, and a bucket's whole pass, copies
included, is recorded once and replayed: one call instead of fifty.

Legend: G groups, E environments of a group; rows are [G * E, ...].
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
"""Named rows [n, ...] -> named answers [n, ...], under whatever weights are the newest. Row by row: what is in one
changes no other."""


class InferenceBatch(Protocol):
    """`stage` the rows of every waiting group in its place, then `run` them."""

    def stage(self, name: str, place: int, rows: np.ndarray) -> None:
        """The rows [E, ...] of one leaf, of the group in this place. They must not change before `run` returns."""

    def run(self, groups: int) -> dict[str, np.ndarray]:
        """InferenceBatch for the first `groups` places, [groups * E, ...]; valid until the next call."""


class CpuBatch:
    """On the CPU."""

    def __init__(self, forward: Forward, inputs: Mapping[str, np.ndarray], group_size: int) -> None:
        """inputs: every leaf's rows for all groups, [G * E, ...], zeros."""
        self.forward, self.E = forward, group_size
        self.rows = dict(inputs)
        self.tensors = {name: torch.from_numpy(rows) for name, rows in inputs.items()}

    def stage(self, name: str, place: int, rows: np.ndarray) -> None:
        self.rows[name][place * self.E : place * self.E + self.E] = rows

    def run(self, groups: int) -> dict[str, np.ndarray]:
        answers = self.forward({name: tensor[: groups * self.E] for name, tensor in self.tensors.items()})
        return {name: tensor.numpy() for name, tensor in answers.items()}


class GpuBatch:
    """On an accelerator."""

    def __init__(
        self,
        forward: Forward,
        inputs: Mapping[str, np.ndarray],
        group_size: int,
        accelerator: Accelerator,
        *,
        direct: bool,
        whole: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """direct: the accelerator may read what `stage` is given. whole: one bucket, all groups. say: gets a line where
        something has to be done a slower way."""
        self.forward, self.E, self.accelerator, self.log = forward, group_size, accelerator, say
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
        """RunRecorder every bucket, the largest first. What cannot be recorded is done step by step, and said."""
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
        where = slice(place * self.E, place * self.E + self.E)
        if name in self.staged:
            self.staged[name].numpy()[where] = rows
        else:
            self.accelerator.copy(self.device[name][where], torch.from_numpy(rows))

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
        return {name: answer[:used].numpy() for name, answer in self.outputs.items()}

    def _clear(self, used: int, rows: int) -> None:
        """Zero the padding: rows of earlier batches are no input of this one."""
        for name, tensor in self.device.items():
            if name in self.staged:
                self.staged[name][used:rows].zero_()
            else:
                self.accelerator.run(tensor[used:rows].zero_)

    def _pass(self, rows: int) -> None:
        """Upload, forward, download, for the first `rows`."""
        for name, host in self.staged.items():
            self.accelerator.copy(self.device[name][:rows], host[:rows])
        answers = self.forward({name: tensor[:rows] for name, tensor in self.device.items()})
        if not self.outputs:  # the largest bucket is the first
            self.outputs = {
                name: self.accelerator.pinned(torch.empty_like(x, device="cpu")) for name, x in answers.items()
            }
        for name, answer in answers.items():
            self.accelerator.copy(self.outputs[name][:rows], answer)


def buckets(groups: int) -> list[int]:
    """Powers of two up to the number of groups, and that number."""
    sizes = [1 << power for power in range(groups.bit_length()) if 1 << power < groups]
    return [*sizes, groups]
