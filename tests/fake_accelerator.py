"""A device on the CPU that does everything as late as it may, and recordings that know nothing but what was recorded.

Copies happen when device work that was asked for later runs, downloads not before `wait`: memory that is read or given
away too early shows. A recording is the list of torch's own operations on the tensors they touched: numbers, shapes and
memory are those of the recording for ever, as in a CUDA graph. What a CUDA graph refuses is refused here: asking the
host for a value, uploads of values of the host, and operations whose shape depends on a value.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sfactory.device.accelerator import NotRecordable

aten = torch.ops.aten
ASKS_THE_HOST = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.item, aten._unique2,
    aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount,
}  # fmt: skip


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _refused(*unused, **also):
    raise NotRecordable("a copy between device and host that waits")


class _Recorder(TorchDispatchMode):
    """Keeps every operation; puts back afterwards what was changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.before, self.born = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in ASKS_THE_HOST:
            raise NotRecordable(f"{func} asks the host")
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
            place = _place(tensor)
            if place not in self.born and place not in self.before:
                storage = tensor.untyped_storage()
                self.before[place] = (storage, storage.clone())
        result = func(*args, **kwargs)
        known = {_place(x) for x in flat}
        out = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
        fresh = [_place(x) not in known for x in out]
        self.born |= {_place(x) for x, new in zip(out, fresh, strict=True) if new}
        self.operations.append((func, args, kwargs, out, fresh))
        return result

    def undo(self) -> None:
        for storage, contents in self.before.values():
            storage.copy_(contents)


class FakeAccelerator:
    """An `Accelerator`. may_register, may_record: what a system without those rights does."""

    def __init__(self, may_register: bool = True, may_record: bool = True) -> None:
        self.device = torch.device("cpu")
        self.may_register, self.may_record = may_register, may_record
        self.host: set[int] = set()  # memory given out as pinned
        self.uploads: list[tuple[Tensor, Tensor]] = []
        self.downloads: list[tuple[Tensor, Tensor]] = []
        self.running = False
        self.registered = self.ever_registered = 0  # bytes
        self.recordings = self.replays = 0

    def pinned(self, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        self.host.add(_place(tensor))
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
            assert _place(target) not in self.host, "a download is part of some device work"
            self.uploads.append((target, source))
        elif _place(target) in self.host:
            self.downloads.append((target, source.clone()))  # in its turn, but nobody has heard of it yet
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
                mock.patch.multiple(torch, tensor=_refused, as_tensor=_refused, from_numpy=_refused),
                mock.patch.multiple(Tensor, cpu=_refused, numpy=_refused, tolist=_refused),
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
                if func.overloadpacket is aten.copy_ and _place(args[0]) in self.host:
                    self.downloads.append((args[0], args[1].clone()))
                    continue
                again = [x for x in torch.utils._pytree.tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
                for old, new, copied in zip(out, again, fresh, strict=True):
                    if copied:
                        old.copy_(new)

    def _upload(self) -> None:
        for target, source in self.uploads:
            target.copy_(source)
        self.uploads.clear()


def use_on_all_workers(late: FakeAccelerator | None, monkeypatch) -> None:
    """From now on every worker uses this device."""
    for room in ("inference", "learner"):
        monkeypatch.setattr(f"sfactory.workers.{room}.accelerator_of", lambda *unused, **also: late)
