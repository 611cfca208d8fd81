"""What is asked of a device: recordings that fail say why, memory is registered once and given back."""

import contextlib
import gc

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator

from sfactory.device.accelerator import Cuda, NotRecordable, Replay, accelerator_of, register
from sfactory.device.selection import pick_device

torch.set_num_threads(1)


def test_a_recording_refuses_what_asks_the_host():
    """Else none of the tests here would say anything of a GPU."""
    x = torch.arange(4.0)
    waiting = (lambda: x.tolist(), lambda: x.cpu(), lambda: x.numpy())
    asking = (lambda: x.sum().item(), lambda: x[x > 1].sum(), lambda: x.nonzero(), lambda: torch.unique(x))
    for work in (*waiting, *asking, lambda: torch.as_tensor(np.ones(4)), lambda: x + torch.tensor(1.0)):
        with pytest.raises(NotRecordable):
            FakeAccelerator().record(work)
    FakeAccelerator().record(lambda: x.add_(1.0))
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]  # the recording itself does nothing


def test_a_number_from_outside_would_be_that_of_the_recording():
    """The mistake that tensors for the learning rate and the moments avoid shows here."""
    state = {"lr": 1.0}
    replay = Replay(FakeAccelerator(), lambda batch, order: {"lr": batch * state["lr"]}, print)
    one, seen = torch.ones(()), []
    for number in range(5):
        state["lr"] = float(number)
        seen.append(float(replay(one, None)["lr"]))
    assert seen == [0.0, 1.0, 2.0, 2.0, 2.0]
    with pytest.raises(AssertionError, match="where it was"):
        replay(torch.ones(()), None)


class NoDriver:
    """torch.cuda without a device: what is called and in which order, and what fails."""

    def __init__(self, refuses=()):
        self.refuses, self.calls = refuses, []
        self.Event = self.Stream = lambda *args, **also: self
        self.CUDAGraph = object

    def cudart(self):
        return self

    def cudaHostRegister(self, address, size, flags):
        self.calls.append("register")
        return 1 if "register" in self.refuses else 0

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
            if "capture" in self.refuses:
                raise RuntimeError("operation failed due to a previous error during capture")

    def synchronize(self, device=None):
        self.calls.append("synchronize")


@pytest.fixture
def no_driver(monkeypatch):
    driver = NoDriver()
    monkeypatch.setattr(torch, "cuda", driver)
    monkeypatch.setattr(Cuda, "registered", {})
    return driver


def test_memory_is_registered_once_and_given_back(no_driver, monkeypatch):
    """In lockstep two workers ask for the same memory; a refusal leaves an error with CUDA that must not be the next
    kernel's."""
    cuda, memory = Cuda(torch.device("cpu"), spin=False), np.zeros(64, np.uint8)
    other = Cuda(torch.device("cpu"), spin=True)
    no_driver.calls.clear()
    assert cuda.register(memory)
    assert other.register(memory)
    assert no_driver.calls == ["register"]
    cuda.release()
    other.release()
    assert no_driver.calls == ["register", "synchronize", "unregister", "synchronize"]
    no_driver.refuses = ("register",)
    assert not cuda.register(memory)
    cuda.release()
    assert no_driver.calls.count("unregister") == 1


def test_a_recording_that_fails_says_why_and_leaves_the_collector_on(no_driver):
    cuda = Cuda(torch.device("cpu"), spin=False)
    no_driver.refuses = ("capture",)

    def work():
        assert not gc.isenabled()
        raise RuntimeError("this copy waits for the host\nand a long story")

    with pytest.raises(NotRecordable, match=r"^this copy waits for the host$"):
        cuda.record(work)
    assert gc.isenabled()
    with pytest.raises(NotRecordable, match=r"^operation failed"):
        cuda.record(lambda: None)


def test_a_device_of_cuda_has_a_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert pick_device("cuda") == pick_device("auto") == torch.device("cuda", 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    assert pick_device("cpu") == torch.device("cpu")


def test_the_cpu_has_no_accelerator():
    assert accelerator_of(torch.device("cpu"), spin=True) is None
    assert register(None, None, print) is False
