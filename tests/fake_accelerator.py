"""A fake accelerator on the CPU that delays every copy to the last legal moment and replays only what was recorded.

Uploads run when later device work runs, downloads not before `wait`: memory that is read or released too early gives
wrong numbers. A recording is the list of torch operations and the tensors they touched: numbers, shapes and memory are
fixed, as in a CUDA graph. Operations that a CUDA graph rejects are rejected here: reading a value on the host,
uploading values from the host, and operations whose shape depends on a value.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.distributed import Work
from torch.utils._python_dispatch import TorchDispatchMode

from sfactory.device.accelerator import NotRecordable

aten = torch.ops.aten
READS_ON_HOST = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.item, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount,
}  # fmt: skip


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _reject(*unused, **options):
    raise NotRecordable("a synchronous copy between device and host")


class _Recorder(TorchDispatchMode):
    """Records every operation; `undo` restores what was changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.before, self.created = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in READS_ON_HOST:
            raise NotRecordable(f"{func} reads a value on the host")
        if func.overloadpacket is aten.index and any(x is not None and x.dtype == torch.bool for x in args[1]):
            raise NotRecordable("the number of rows depends on values")
        flat = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = []
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor)]
        for argument in func._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                written += [x for x in torch.utils._pytree.tree_leaves(kwargs[argument.name]) if isinstance(x, Tensor)]
        for tensor in written:
            address = _address(tensor)
            if address not in self.created and address not in self.before:
                storage = tensor.untyped_storage()
                self.before[address] = (storage, storage.clone())
        result = func(*args, **kwargs)
        known = {_address(x) for x in flat}
        out = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
        fresh = [_address(x) not in known for x in out]
        self.created |= {_address(x) for x, new in zip(out, fresh, strict=True) if new}
        self.operations.append((func, args, kwargs, out, fresh))
        return result

    def undo(self) -> None:
        for storage, contents in self.before.values():
            storage.copy_(contents)


class FakeAccelerator:
    """An `Accelerator` with delayed copies. may_register, may_record: False for a system without that support."""

    def __init__(self, may_register: bool = True, may_record: bool = True) -> None:
        self.device = torch.device("cpu")
        self.may_register, self.may_record = may_register, may_record
        self.host: set[int] = set()  # addresses of pinned memory
        self.uploads: list[tuple[Tensor, Tensor]] = []
        self.downloads: list[tuple[Tensor, Tensor]] = []
        self.running = False
        self.registered = self.ever_registered = 0  # bytes
        self.recordings = self.replays = 0

    def pinned(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        self.host.add(_address(tensor))
        return tensor

    def register(self, memory: np.ndarray) -> bool:
        self.registered = self.ever_registered = memory.nbytes if self.may_register else 0
        return self.may_register

    def release(self) -> None:
        self.registered = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        assert target.shape == source.shape
        assert target.dtype == source.dtype
        if not self.running:
            assert _address(target) not in self.host, "a download must be part of device work"
            self.uploads.append((target, source))
        elif _address(target) in self.host:
            self.downloads.append((target, source.clone()))  # the contents of now, visible after `wait`
        else:
            target.copy_(source)

    def run(self, work: Callable[[], object]) -> None:
        self._upload()
        self.running = True
        try:
            work()
        finally:
            self.running = False

    def wait(self) -> None:
        self._upload()
        for target, source in self.downloads:
            target.copy_(source)
        self.downloads.clear()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        if not self.may_record:
            raise NotRecordable("not here")
        self._upload()
        recorder = _Recorder()
        copy, self.copy = self.copy, lambda target, source: target.copy_(source)  # type: ignore[method-assign]
        try:
            with (
                recorder,
                mock.patch.multiple(torch, tensor=_reject, as_tensor=_reject, from_numpy=_reject),
                mock.patch.multiple(Tensor, cpu=_reject, numpy=_reject, tolist=_reject),
            ):
                work()
        finally:
            self.copy = copy  # type: ignore[method-assign]
            recorder.undo()
        self.recordings += 1
        return lambda: self._replay(recorder.operations)

    def _replay(self, operations: list) -> None:
        self._upload()
        self.replays += 1
        with torch.inference_mode():
            for func, args, kwargs, out, fresh in operations:
                if func.overloadpacket is aten.copy_ and _address(args[0]) in self.host:
                    self.downloads.append((args[0], args[1].clone()))
                    continue
                result = torch.utils._pytree.tree_leaves(func(*args, **kwargs))
                for collective in (x for x in result if isinstance(x, torch.ScriptObject)):
                    Work.unbox(collective).wait()  # as a stream waits for NCCL
                repeated = [x for x in result if isinstance(x, Tensor)]
                for old, new, copied in zip(out, repeated, fresh, strict=True):
                    if copied:
                        old.copy_(new)

    def _upload(self) -> None:
        for target, source in self.uploads:
            target.copy_(source)
        self.uploads.clear()


def use_on_all_workers(accelerator: FakeAccelerator | None, monkeypatch) -> None:
    """Make inference and learner use this accelerator."""
    for worker in ("inference", "learner"):
        monkeypatch.setattr(f"sfactory.workers.{worker}.accelerator_of", lambda *unused, **options: accelerator)
