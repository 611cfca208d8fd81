"""Batches of the inference worker: stage the rows of the waiting groups, run a forward pass, return its outputs.

On the CPU the rows are staged where the network reads them. On a GPU, large leaves are copied directly from shared
memory where it can be registered; small leaves are packed in pinned memory and copied together, and so are the
outputs: one copy each way. The number of groups is rounded up to a bucket, so that few shapes occur, and the pass of
each bucket, copies included, is recorded once as a graph and replayed: one launch instead of fifty.

Legend: G groups, E environments per group; rows are [G * E, ...].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sfactory.device.accelerator import DIRECT_BYTES, WARM, Accelerator, NotRecordable

ALIGN = 256  # bytes; a packed leaf begins where a CUDA allocation could begin, so kernels may load wide words

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
        places = len(next(iter(inputs.values())))
        groups = places // group_size
        self.buckets = [groups] if whole else buckets(groups)
        leaves = {name: torch.from_numpy(rows) for name, rows in inputs.items()}
        self.direct = {
            name: torch.zeros_like(leaf, device=accelerator.device)
            for name, leaf in leaves.items()
            if direct and leaf.nbytes // groups >= DIRECT_BYTES
        }
        packed = {name: leaf for name, leaf in leaves.items() if name not in self.direct}
        size = packed_size(packed, places)
        self.host = accelerator.pinned(torch.zeros(size, dtype=torch.uint8))
        self.device = torch.zeros(size, dtype=torch.uint8, device=accelerator.device)
        self.uploads = {
            bucket: Upload.of(self.host, self.device, packed, bucket * group_size) for bucket in self.buckets
        }
        self.staged: list[tuple[str, int, np.ndarray]] = []  # packed by `run`, which knows the bucket
        self.downloaded = torch.empty(0)  # outputs of one pass, [bytes] uint8 in pinned memory
        self.outputs: dict[int, dict[str, np.ndarray]] = {}  # views of it, by bucket
        self.replays: dict[int, Callable[[], None]] = {}
        self.prepare()

    def prepare(self) -> None:
        """Record the pass of every bucket, largest first. If that is impossible, log it and launch each operation."""
        for bucket in reversed(self.buckets):
            work = partial(self._pass, bucket)
            for _ in range(WARM):
                self.accelerator.run(work)
                self.accelerator.wait()
            try:
                self.replays[bucket] = self.accelerator.record(work)
            except NotRecordable as error:
                self.log(f"inference is not recorded: {error}")
                return

    def stage(self, name: str, place: int, rows: np.ndarray) -> None:
        if name in self.direct:
            target = self.direct[name][place * self.E : place * self.E + self.E]
            self.accelerator.copy(target, torch.from_numpy(rows))
        else:
            self.staged.append((name, place * self.E, rows))

    def run(self, groups: int) -> dict[str, np.ndarray]:
        bucket = next(size for size in self.buckets if size >= groups)
        used = groups * self.E
        self._pack(bucket, used)
        if bucket in self.replays:
            self.replays[bucket]()
        else:
            self.accelerator.run(partial(self._pass, bucket))
        self.accelerator.wait()
        return {name: rows[:used] for name, rows in self.outputs[bucket].items()}

    def _pack(self, bucket: int, used: int) -> None:
        """Write the staged rows where the bucket has them, and zeros over what earlier batches left in the padding."""
        arrays = self.uploads[bucket].arrays
        for name, start, rows in self.staged:
            arrays[name][start : start + self.E] = rows
        self.staged.clear()
        if used < bucket * self.E:
            for rows in arrays.values():
                rows[used:] = 0
            for leaf in self.direct.values():
                self.accelerator.run(leaf[used : bucket * self.E].zero_)

    def _pass(self, bucket: int) -> None:
        """Upload, forward pass and download of the rows of a bucket."""
        upload = self.uploads[bucket]
        self.accelerator.copy(upload.target, upload.source)
        direct = {name: leaf[: bucket * self.E] for name, leaf in self.direct.items()}
        # Wide numbers first: every output then begins at a multiple of the size of its numbers.
        outputs = dict(sorted(self.forward({**upload.tensors, **direct}).items(), key=lambda item: -item[1].itemsize))
        packed = torch.cat([output.reshape(-1).view(torch.uint8) for output in outputs.values()])
        if bucket not in self.outputs:
            if not self.outputs:  # the largest bucket is the first
                self.downloaded = self.accelerator.pinned(torch.empty_like(packed, device="cpu"))
            self.outputs[bucket] = {name: x.numpy() for name, x in unpacked(self.downloaded, outputs, 1).items()}
        self.accelerator.copy(self.downloaded[: len(packed)], packed)


class Upload(NamedTuple):
    """The packed inputs of one bucket."""

    source: Tensor
    """[bytes] uint8, in pinned memory of the host."""
    target: Tensor
    """[bytes] uint8, on the device."""
    arrays: dict[str, np.ndarray]
    """Views of `source`: rows of every leaf."""
    tensors: dict[str, Tensor]
    """Views of `target`: rows of every leaf."""

    @classmethod
    def of(cls, host: Tensor, device: Tensor, leaves: Mapping[str, Tensor], rows: int) -> Upload:
        """Use the beginning of two buffers for the first `rows` rows of every leaf."""
        leaves, size = {name: leaf[:rows] for name, leaf in leaves.items()}, packed_size(leaves, rows)
        arrays = {name: x.numpy() for name, x in unpacked(host, leaves, ALIGN).items()}
        return cls(host[:size], device[:size], arrays, unpacked(device, leaves, ALIGN))


def packed_size(leaves: Mapping[str, Tensor], rows: int) -> int:
    """Bytes of `rows` rows of every leaf, each leaf rounded up to `ALIGN`."""
    return sum(-(-rows * leaf[0].nbytes // ALIGN) * ALIGN for leaf in leaves.values())


def unpacked(buffer: Tensor, like: Mapping[str, Tensor], align: int) -> dict[str, Tensor]:
    """Views of a buffer [bytes] uint8 with the shapes and dtypes of `like`, one after the other, aligned."""
    views, start = {}, 0
    for name, leaf in like.items():
        views[name] = buffer[start : start + leaf.nbytes].view(leaf.dtype).view(leaf.shape)
        start += -(-leaf.nbytes // align) * align
    return views


def buckets(groups: int) -> list[int]:
    """Batch sizes in groups: the powers of two below `groups`, and `groups`."""
    sizes = [1 << power for power in range(groups.bit_length()) if 1 << power < groups]
    return [*sizes, groups]
