"""Device layer: asynchronous host-device copies, CUDA graph capture and replay.

Copies and work are queued and run in the order of the calls; everything queued has finished when `wait` returns. Until
then the memory on both sides of a copy belongs to the device. A CPU has no accelerator (`accelerator_of` returns None):
its tensors are the shared memory itself. The code that uses this layer is tested on the CPU with an implementation that
delays every operation to the last legal moment (tests/fake_accelerator.py).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from sfactory.shm.arena import Arena

PORTABLE = 1  # cudaHostRegisterPortable: pinned for every context of this process
SPIN_S = 50e-6  # of a busy-wait: about the time that waking up from a sleeping wait takes
WARM = 2  # runs before a recording, in which libraries select algorithms and allocate workspaces
DIRECT_BYTES = 1 << 16  # of one copy; below this size its call costs more than copying the bytes twice

Work = Callable[[Any, Tensor | None], dict[str, Tensor]]
"""(batch, order) -> named 0-dim tensors."""


class NotRecordable(RuntimeError):
    """The work needs a value on the host, or memory that cannot be allocated during a recording."""


class Accelerator(Protocol):
    """Operations of a device that the workers use."""

    device: torch.device

    def pinned(self, tensor: Tensor) -> Tensor:
        """Copy of a tensor in pinned host memory, which `copy` transfers asynchronously."""

    def register(self, memory: np.ndarray) -> bool:
        """Let the device read shared memory [bytes] uint8 directly; False if the system does not allow it."""

    def release(self) -> None:
        """Unregister all memory; call it before the memory is unmapped."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue target <- source, same shape and dtype; either may be on the host."""

    def run(self, work: Callable[[], object]) -> None:
        """Queue work on the device's tensors."""

    def wait(self) -> None:
        """Block until everything queued has finished."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work on fixed tensors; return a function that repeats it on the same tensors.

        The recording itself does not run the work. Raises NotRecordable, without side effects, if it is not possible.
        """


class Cuda:
    """One CUDA device with a stream of its own, because the default stream cannot be recorded."""

    registered: ClassVar[
        dict[int, np.ndarray]
    ] = {}  # by address, of this process; the reference keeps the memory mapped

    def __init__(self, device: torch.device, urgent: bool) -> None:
        """urgent: for a worker that others wait for. Its waits begin with a busy-wait, and its stream has high
        priority, which counts among streams of one process, and of several under MPS."""
        self.device, self.stream = device, torch.cuda.Stream(device, priority=-1 if urgent else 0)
        torch.cuda.synchronize(device)  # finish work of the default stream, which is not ordered with this one
        self.spin_s = SPIN_S if urgent else 0.0
        self.event = torch.cuda.Event(blocking=True)  # `synchronize` sleeps
        self.failed: list[torch.cuda.CUDAGraph] = []  # kept alive: the allocator may still use them

    def pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory()

    def register(self, memory: np.ndarray) -> bool:
        address = memory.ctypes.data
        if address in self.registered:  # by another worker of this process (lockstep)
            return True
        error = int(torch.cuda.cudart().cudaHostRegister(address, memory.nbytes, PORTABLE))
        if not error:
            self.registered[address] = memory
        else:  # CUDA reports the error at the next call; consume it here, not in the next kernel
            with contextlib.suppress(RuntimeError):
                torch.zeros(1, device=self.device).add_(1.0)
        return not error

    def release(self) -> None:
        torch.cuda.synchronize(self.device)
        while self.registered:
            torch.cuda.cudart().cudaHostUnregister(self.registered.popitem()[0])

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def run(self, work: Callable[[], object]) -> None:
        work()  # calls are queued on the stream in order

    def wait(self) -> None:
        self.event.record(self.stream)
        deadline = time.perf_counter() + self.spin_s
        while not self.event.query():
            if time.perf_counter() >= deadline:
                self.event.synchronize()
                return

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        # One memory pool per recording: replays may run in any order, and a failed recording spoils only its own pool.
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        collecting = gc.isenabled()
        gc.collect()
        gc.disable()  # memory of an earlier run that is freed meanwhile would become part of the recording
        try:  # thread_local: the thread that writes checkpoints may call CUDA meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            self.failed.append(graph)
            with contextlib.suppress(RuntimeError, AttributeError):  # before torch 2.13 the pool stays open
                torch._C._cuda_endAllocateToPool(self.device.index, pool)
            cause = error.__context__ or error  # the end of the recording fails too, with a less useful message
            raise NotRecordable(str(cause).strip().partition("\n")[0]) from error
        finally:
            if collecting:
                gc.enable()
        return graph.replay


class Replay:
    """Run a function on fixed tensors: `WARM` direct calls, one recording of the same work, then replays."""

    def __init__(self, accelerator: Accelerator, work: Work, log: Callable[[str], None]) -> None:
        """work(batch, order) -> named 0-dim tensors; it changes its own state in place.

        log: receives one line if the work cannot be recorded; it is then called directly every time.
        """
        self.accelerator, self.work, self.log = accelerator, work, log
        self.calls = 0
        self.replay: Callable[[], None] | None = None
        self.batch: object = None
        self.order: Tensor | None = None
        self.names: list[str] = []
        self.results: Tensor | None = None

    def __call__(self, batch: Any, order: Tensor | None) -> dict[str, Tensor]:
        """batch: the same tensors in every call, with new contents. order: copied to the memory that is recorded."""
        self.calls += 1
        if order is not None:
            self.order = order.clone() if self.order is None else self.order.copy_(order)
        if self.calls == WARM + 1:
            self._record(batch)
        if self.replay is None:
            self._work(batch)
        else:
            assert batch is self.batch, "the recording reads the memory of the first batch"
            self.replay()
        assert self.results is not None
        return dict(zip(self.names, self.results.clone().unbind(0), strict=True))

    def _work(self, batch: Any) -> None:
        """What is recorded, and called directly before: so nothing of the recording runs for the first time."""
        results = self.work(batch, self.order)
        self.names, self.results = list(results), torch.stack([x.float() for x in results.values()])

    def _record(self, batch: Any) -> None:
        try:
            self.replay, self.batch = self.accelerator.record(partial(self._work, batch)), batch
        except NotRecordable as error:
            self.log(f"updates are not recorded: {error}")


def register(accelerator: Accelerator | None, arena: Arena, log: Callable[[str], None]) -> bool:
    """Let the accelerator, if there is one, read the trajectories directly; log one line if that is not possible."""
    if accelerator is None:
        return False
    allowed = accelerator.register(arena.whole)
    if not allowed:
        log("the GPU cannot read shared memory directly: observations are copied once more")
    return allowed


def accelerator_of(device: torch.device, *, urgent: bool = False, exact: bool = False) -> Accelerator | None:
    """Return the accelerator of a device; None for the CPU.

    There is one per device and process, because two streams of one process are not ordered.

    Args:
        device: with an index if it is a CUDA device.
        urgent: for a worker that others wait for (inference).
        exact: the same run must give the same bits again, even if it is slower.
    """
    if device.type == "cpu":
        return None
    # No TF32: with ten bits of mantissa the log-probabilities of the two workers would differ by 1e-3, not 1e-6.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if exact:  # the only operations of the networks whose order of summation may vary
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
    # The learner's few shapes are used thousands of times, so measuring algorithms pays. Inference has one small shape
    # per bucket: measured algorithms would differ between buckets and between restarts of the worker, by chance, and
    # log-probabilities with them. cuDNN's own rule has no chance in it.
    torch.backends.cudnn.benchmark = not exact and not urgent
    cuda = _cuda(device.index, urgent)
    torch.cuda.set_device(cuda.device)
    torch.cuda.set_stream(cuda.stream)  # of this thread, which may not be the one that created it
    return cuda


@functools.cache
def _cuda(index: int, urgent: bool) -> Cuda:
    return Cuda(torch.device("cuda", index), urgent)
