"""Accelerator: recordings report why they fail, memory is registered once and released."""

import contextlib
import gc
import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator
from torch.utils._python_dispatch import TorchDispatchMode

from sfactory.device import accelerator as module
from sfactory.device.accelerator import SPIN_S, WARM, Cuda, NotRecordable, Replay, accelerator_of, register
from sfactory.device.selection import pick_device

torch.set_num_threads(1)


def test_fake_accelerator_rejects_recordings_that_need_the_host():
    """Otherwise the tests on the fake accelerator would prove nothing about a GPU."""
    x = torch.arange(4.0)
    copies = (lambda: x.tolist(), lambda: x.cpu(), lambda: x.numpy())
    reads = (lambda: x.sum().item(), lambda: x[x > 1].sum(), lambda: x.nonzero(), lambda: torch.unique(x))
    for work in (*copies, *reads, lambda: torch.as_tensor(np.ones(4)), lambda: x + torch.tensor(1.0)):
        with pytest.raises(NotRecordable):
            FakeAccelerator().record(work)
    FakeAccelerator().record(lambda: x.add_(1.0))
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]  # the recording itself does not run the work


def test_replay_keeps_python_numbers_of_the_recording():
    """This is why the learning rate and the moments are tensors."""
    state = {"lr": 1.0}
    replay = Replay(FakeAccelerator(), lambda batch, order: {"lr": batch * state["lr"]}, print)
    one, seen = torch.ones(()), []
    for number in range(5):
        state["lr"] = float(number)
        seen.append(float(replay(one, None)["lr"]))
    assert seen == [0.0, 1.0, 2.0, 2.0, 2.0]
    with pytest.raises(AssertionError, match="memory of the first batch"):
        replay(torch.ones(()), None)


def test_replay_warms_the_operations_that_it_records():
    """Every kernel has run, and every size of memory was requested, before the recording."""
    log, rows, order, recorded = OperationLog(), torch.arange(6.0), torch.tensor([2, 0, 1]), []

    class Refusing(FakeAccelerator):
        def record(self, work):
            with OperationLog() as operations:
                work()
            recorded.extend(operations.calls[-1])
            raise NotRecordable("seen")

    replay = Replay(Refusing(), lambda batch, order: {"sum": batch[order].sum(), "count": (batch > 1).sum()}, print)
    for _ in range(WARM):
        with log:
            assert float(replay(rows, order)["sum"]) == 3.0
    replay(rows, order)
    assert recorded
    for warm in log.calls:  # one operation copies the order before, three read the results afterwards
        assert warm[1:-3] == recorded


def test_replay_uses_the_order_of_every_call():
    rows = torch.arange(6.0)
    replay = Replay(FakeAccelerator(), lambda batch, order: {"sum": batch[order].sum()}, print)
    orders = [torch.tensor([row, row + 1]) for row in range(WARM + 3)]
    assert [float(replay(rows, order)["sum"]) for order in orders] == [1.0, 3.0, 5.0, 7.0, 9.0]


class OperationLog(TorchDispatchMode):
    """Names of the torch operations of every `with` block."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __enter__(self):
        self.calls.append([])
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[-1].append(str(func))
        return func(*args, **(kwargs or {}))


class NoDriver:
    """torch.cuda without a device: records the calls and fails on demand."""

    def __init__(self, failing=()):
        self.failing, self.calls = failing, []
        self.Event, self.Stream = (partial(self.made, kind) for kind in ("event", "stream"))
        self.done_after = 0  # queries
        self.CUDAGraph = object

    def made(self, kind, *args, **options):
        self.calls.append((kind, options))
        return self

    def record(self, stream):
        self.queries, self.begun = 0, time.perf_counter()

    def query(self):
        self.queries += 1
        return self.queries > self.done_after

    def cudart(self):
        return self

    def cudaHostRegister(self, address, size, flags):
        self.calls.append("register")
        return 1 if "register" in self.failing else 0

    def cudaHostUnregister(self, address):
        self.calls.append("unregister")

    def graph_pool_handle(self):
        self.calls.append("pool")
        return (0, len(self.calls))

    @contextlib.contextmanager
    def graph(self, graph, **settings):
        try:
            yield
        finally:
            if "capture" in self.failing:
                raise RuntimeError("operation failed due to a previous error during capture")

    def set_device(self, device):
        self.calls.append("set_device")

    def set_stream(self, stream):
        self.calls.append("set_stream")

    def synchronize(self, device=None):
        self.calls.append("synchronize")


@pytest.fixture
def no_driver(monkeypatch):
    driver = NoDriver()
    monkeypatch.setattr(torch, "cuda", driver)
    monkeypatch.setattr(Cuda, "registered", {})
    return driver


def test_cuda_registers_memory_once_and_releases_it(no_driver, monkeypatch):
    """In lockstep two workers register the same memory; the error of a failed call must not reach the next kernel."""
    cuda, memory = Cuda(torch.device("cpu"), urgent=False), np.zeros(64, np.uint8)
    other = Cuda(torch.device("cpu"), urgent=True)
    no_driver.calls.clear()
    assert cuda.register(memory)
    assert other.register(memory)
    assert no_driver.calls == ["register"]
    cuda.release()
    other.release()
    assert no_driver.calls == ["register", "synchronize", "unregister", "synchronize"]
    no_driver.failing = ("register",)
    assert not cuda.register(memory)
    cuda.release()
    assert no_driver.calls.count("unregister") == 1


def test_cuda_wait_of_an_urgent_worker_spins_for_a_moment_and_then_sleeps(no_driver):
    inference, learner = (Cuda(torch.device("cpu"), urgent=urgent) for urgent in (True, False))
    assert no_driver.calls.count(("event", {"blocking": True})) == 2
    assert [options for kind, options in filter(lambda call: len(call) == 2, no_driver.calls) if kind == "stream"] == [
        {"priority": -1}, {"priority": 0},
    ]  # fmt: skip
    no_driver.calls.clear()
    no_driver.done_after = 2
    inference.spin_s = 60.0  # however slow this machine is
    inference.wait()
    assert (no_driver.queries, no_driver.calls) == (3, [])
    no_driver.done_after = math.inf
    inference.spin_s = SPIN_S
    inference.wait()
    assert time.perf_counter() - no_driver.begun >= SPIN_S
    assert no_driver.calls == ["synchronize"]
    learner.wait()
    assert (no_driver.queries, no_driver.calls) == (1, ["synchronize"] * 2)


@pytest.mark.parametrize(
    ("urgent", "exact", "expected"), [(False, False, True), (True, False, False), (False, True, False)]
)
def test_accelerator_of_lets_cudnn_measure_algorithms_for_the_async_learner_only(
    no_driver, monkeypatch, urgent, exact, expected
):
    for name in ("benchmark", "deterministic", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(module, "_cuda", Cuda)
    accelerator_of(torch.device("cuda", 0), urgent=urgent, exact=exact)
    assert torch.backends.cudnn.benchmark is expected
    assert torch.backends.cudnn.deterministic is exact
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is False


def test_cuda_record_reports_the_first_error_and_leaves_the_garbage_collector_on(no_driver):
    cuda = Cuda(torch.device("cpu"), urgent=False)
    no_driver.failing = ("capture",)

    def work():
        assert not gc.isenabled()
        raise RuntimeError("this copy waits for the host\nand a long story")

    with pytest.raises(NotRecordable, match=r"^this copy waits for the host$"):
        cuda.record(work)
    assert gc.isenabled()
    with pytest.raises(NotRecordable, match=r"^operation failed"):
        cuda.record(lambda: None)


def test_pick_device_returns_cuda_devices_with_an_index(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert pick_device("cuda") == pick_device("auto") == torch.device("cuda", 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    assert pick_device("cpu") == torch.device("cpu")


def test_accelerator_of_the_cpu_is_none():
    assert accelerator_of(torch.device("cpu"), urgent=True) is None
    assert register(None, None, print) is False
