"""A GPU as the workers see it, arithmetic apart: copies nobody waits for, and work that is recorded once and replayed.

Everything a worker asks for happens later, in the order it was asked, and has happened when `wait` returns. Until then
the memory on both sides of a copy belongs to the device. A CPU has none of this (`accelerator_of` answers None there):
its tensors are the shared memory itself. What rests on these few calls is tested on the CPU with an implementation that
does everything at the last possible moment (tests/fake_accelerator.py).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from sfactory.shm.arena import Arena

PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of this process
WARM = 2  # runs before a recording: libraries pick their algorithms and take their workspaces in the first ones
DIRECT_BYTES = 1 << 16  # of one copy: below, its call costs more than copying the bytes twice

Work = Callable[[Any, Tensor | None], dict[str, Tensor]]


class NotRecordable(RuntimeError):
    """The work asks the host something, or for memory that cannot be had during a recording."""


class Accelerator(Protocol):
    """What workers use of a device."""

    device: torch.device

    def pinned(self, tensor: Tensor) -> Tensor:
        """The same contents in host memory that `copy` need not wait for."""

    def register(self, memory: np.ndarray) -> bool:
        """Let the device read shared memory directly, [bytes] uint8; False where the system does not allow it."""

    def release(self) -> None:
        """Take back what was registered, before its memory goes."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """target <- source, same shape and dtype, one of them perhaps on the host."""

    def run(self, work: Callable[[], object]) -> None:
        """Work on the device's tensors, in its turn."""

    def wait(self) -> None:
        """Until everything asked for has happened."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Work on fixed tensors -> a call that does the same again, on the same tensors. The recording itself does
        nothing. NotRecordable if it cannot be; nothing has happened then."""


class Cuda:
    """One CUDA device, one stream: the worker's own, for nothing can be recorded on the default one."""

    registered: ClassVar[dict[int, np.ndarray]] = {}  # of this process; what is referenced here is not unmapped

    def __init__(self, device: torch.device, spin: bool) -> None:
        """spin: wait without giving up the core, for whoever others wait for."""
        self.device, self.stream = device, torch.cuda.Stream(device)
        torch.cuda.synchronize(device)  # what was begun on the default stream, which does not wait for this one
        self.event = torch.cuda.Event(blocking=not spin)
        self.broken: list[torch.cuda.CUDAGraph] = []  # the allocator may still ask them after a recording failed

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    def register(self, memory: np.ndarray) -> bool:
        address = memory.ctypes.data
        if address in self.registered:  # by the other worker: in lockstep they are one process
            return True
        failed = int(torch.cuda.cudart().cudaHostRegister(address, memory.nbytes, PORTABLE))
        if not failed:
            self.registered[address] = memory
        else:  # CUDA keeps the error for whoever asks next; that must not be the next kernel
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=self.device).add_(1.0)
        return not failed

    def release(self) -> None:
        torch.cuda.synchronize(self.device)
        while self.registered:
            torch.cuda.cudart().cudaHostUnregister(self.registered.popitem()[0])

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def run(self, work: Callable[[], object]) -> None:
        work()  # the stream keeps the order

    def wait(self) -> None:
        self.event.record(self.stream)
        self.event.synchronize()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        # A pool of memory each: recordings may be replayed in any order, and one that fails spoils its own alone.
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()  # memory of an earlier run that is given back in the middle would be part of the recording
        try:  # thread_local: the thread that writes checkpoints may do what it likes meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            self.broken.append(graph)
            with contextlib.suppress(RuntimeError, AttributeError):  # before torch 2.13 a failure leaves the pool open
                torch._C._cuda_endAllocateToPool(self.device.index, pool)
            cause = error.__context__ or error  # the end of the recording fails too, and says less
            raise NotRecordable(str(cause).strip().partition("\n")[0]) from error
        finally:
            if collecting:
                gc.enable()
        return graph.replay


class Replay:
    """An update of tensors that stay where they are, recorded once and replayed from then on."""

    def __init__(self, accelerator: Accelerator, work: Work, say: Callable[[str], None]) -> None:
        """work(batch, order) -> named 0-dim tensors; it changes its own state in place. say: gets a line if it cannot
        be recorded; it is done step by step then."""
        self.accelerator, self.work, self.log = accelerator, work, say
        self.calls = 0
        self.replay: Callable[[], None] | None = None
        self.batch: object = None
        self.order: Tensor | None = None
        self.names: list[str] = []
        self.results: Tensor | None = None

    def __call__(self, batch: Any, order: Tensor | None) -> dict[str, Tensor]:
        """batch: the same tensors in every call, filled anew. order: copied to where the recording reads it."""
        self.calls += 1
        if self.calls == WARM + 1:
            self._record(batch, order)
        if self.replay is None:
            return self.work(batch, order)
        assert batch is self.batch, "the recording reads the batch where it was"
        if self.order is not None and order is not None:
            self.order.copy_(order)
        self.replay()
        assert self.results is not None
        return dict(zip(self.names, self.results.clone().unbind(0), strict=True))

    def _record(self, batch: Any, order: Tensor | None) -> None:
        self.batch, self.order = batch, None if order is None else order.clone()

        def work() -> None:
            answers = self.work(batch, self.order)
            self.names, self.results = list(answers), torch.stack([x.float() for x in answers.values()])

        try:
            self.replay = self.accelerator.record(work)
        except NotRecordable as error:
            self.log(f"updates are not recorded: {error}")


def register(accelerator: Accelerator | None, arena: Arena, say: Callable[[str], None]) -> bool:
    """Let the device, if there is one, read the trajectories directly; where it may not, a line says so."""
    if accelerator is None:
        return False
    allowed = accelerator.register(arena.whole)
    if not allowed:
        say("the GPU may not read the shared memory by itself: observations are copied once more")
    return allowed


def accelerator_of(device: torch.device, *, spin: bool = False, exact: bool = False) -> Accelerator | None:
    """The accelerator behind a device; None for the CPU. One per device and process: two streams of one process would
    not wait for each other.

    spin: its `wait` keeps the core, for a worker that the others wait for. exact: the same run twice must give the same
    bits, whatever that costs.
    """
    if device.type == "cpu":
        return None
    # fp32 says fp32: with ten bits of mantissa the two workers' log-probabilities would differ by 1e-3, not 1e-6.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if exact:  # of what the networks do, these two alone may sum in another order the next time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = not exact  # every shape comes back thousands of times
    cuda = _cuda(device.index, spin)
    torch.cuda.set_device(cuda.device)
    torch.cuda.set_stream(cuda.stream)  # of this thread, which need not be the one that made it
    return cuda


@functools.cache
def _cuda(index: int, spin: bool) -> Cuda:
    return Cuda(torch.device("cuda", index), spin)
