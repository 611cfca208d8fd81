"""Accelerator: recordings report why they fail, memory is registered once and released."""

import contextlib
import gc

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator

from sfactory.device.accelerator import Cuda, NotRecordable, Replay, accelerator_of, register
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


class NoDriver:
    """torch.cuda without a device: records the calls and fails on demand."""

    def __init__(self, failing=()):
        self.failing, self.calls = failing, []
        self.Event = self.Stream = lambda *args, **options: self
        self.CUDAGraph = object

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
    cuda, memory = Cuda(torch.device("cpu"), spin=False), np.zeros(64, np.uint8)
    other = Cuda(torch.device("cpu"), spin=True)
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


def test_cuda_record_reports_the_first_error_and_leaves_the_garbage_collector_on(no_driver):
    cuda = Cuda(torch.device("cpu"), spin=False)
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
    assert accelerator_of(torch.device("cpu"), spin=True) is None
    assert register(None, None, print) is False
