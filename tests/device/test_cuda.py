"""The tests of test_recorded_updates, test_inference_batch and test_device_runs on a CUDA device: `make gpu`."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from test_device_runs import run_on
from test_inference_batch import WIDE, E, batches_on
from test_recorded_updates import CASES, empty_batch, fill, trained, update_on

from sfactory.device.accelerator import WARM, Accelerator, NotRecordable, accelerator_of
from sfactory.learning import parts
from sfactory.run import checkpoint
from sfactory.shm.arena import Arena, Field

pytestmark = pytest.mark.gpu


class StepByStep:
    """An accelerator that records nothing."""

    def __init__(self, device: Accelerator) -> None:
        self.inner = device

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def record(self, work):
        raise NotRecordable("disabled")


@pytest.fixture
def cuda():
    assert torch.cuda.is_available(), "tests marked gpu need a CUDA device"
    device = accelerator_of(torch.device("cuda"), exact=True)
    yield device
    device.release()


@pytest.mark.parametrize("case", CASES)
def test_recorded_update_equals_the_direct_update_on_cuda(cuda, case):
    lines = []
    recorded, rows = trained(update_on(cuda, lines=lines, **CASES[case]))
    stepwise, other_rows = trained(update_on(StepByStep(cuda), **CASES[case]))
    assert lines == []
    for name, x in stepwise.items():
        torch.testing.assert_close(recorded[name], x, rtol=1e-4, atol=1e-6, msg=name)
    for row, other in zip(rows, other_rows, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("case", ["one pass", "rows", "ewma", "gru"])
def test_recorded_update_in_parts_on_cuda_equals_the_undivided_update(cuda, case, monkeypatch):
    whole, rows = trained(update_on(cuda, **CASES[case]), updates=WARM + 2)
    monkeypatch.setattr(parts, "GPU_NUMBERS", 16)  # four rows, or one lane
    lines = []
    in_parts, other_rows = trained(update_on(cuda, lines=lines, **CASES[case]), updates=WARM + 2)
    assert lines == []
    for name, x in whole.items():
        torch.testing.assert_close(in_parts[name], x, rtol=1e-2, atol=1e-3, msg=name)
    for row, other in zip(rows, other_rows, strict=True):
        assert row == pytest.approx(other, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("case", ["rows", "ewma", "gru", "normalizers", "squashed box"])
def test_update_on_cuda_equals_the_update_on_the_cpu(cuda, case):
    on_cuda, _ = trained(update_on(cuda, **CASES[case]), updates=WARM + 2)
    on_cpu, _ = trained(update_on(None, **CASES[case]), updates=WARM + 2)
    for name, x in on_cpu.items():
        torch.testing.assert_close(on_cuda[name].cpu(), x, rtol=1e-2, atol=1e-3, msg=name)


def test_cuda_reads_shared_memory_directly(cuda):
    arena = Arena.create({"wide": Field((64, E, WIDE), "float32")})
    assert cuda.register(arena.whole)
    assert cuda.register(arena.whole), "the other worker of the process registers it again"
    arena["wide"][...] = np.arange(64)[:, None, None]
    assert torch.from_numpy(arena["wide"][3]).is_pinned()
    copied = torch.zeros(64, E, WIDE, device=cuda.device)
    for group in range(64):
        cuda.copy(copied[group], torch.from_numpy(arena["wide"][group]))
    cuda.wait()
    arena["wide"][...] = -1.0
    assert copied[:, 0, 0].tolist() == list(range(64))
    cuda.release()
    arena.close()


@pytest.mark.parametrize("direct", [True, False])
def test_inference_batch_on_cuda_equals_the_batch_on_the_cpu(cuda, direct):
    arena = Arena.create({"wide": Field((5, E, WIDE), "float32"), "small": Field((5, E, 1), "float32")})
    assert cuda.register(arena.whole)
    lines, draws = [], np.random.default_rng(0)
    device, host, _ = batches_on(cuda, direct=direct, log=lines.append)
    for groups in (5, 1, 3, 2, 5, 4, 1):
        for name in ("wide", "small"):
            arena[name][...] = draws.random(arena[name].shape, np.float32)
            for place in range(groups):
                device.stage(name, place, arena[name][place])
                host.stage(name, place, arena[name][place])
        on_cuda, on_cpu = device.run(groups), host.run(groups)
        for name, x in on_cpu.items():
            np.testing.assert_allclose(on_cuda[name], x, rtol=1e-4, atol=1e-5)
    assert lines == []
    cuda.release()


@pytest.mark.parametrize("model", [{}, {"core": "gru", "core_size": 8}])
def test_lockstep_run_on_cuda_repeats_with_the_same_seed(cuda, tmp_path, monkeypatch, model):
    first, steps, lines, rho = run_on(cuda, tmp_path, monkeypatch, **model)
    again, same, _, _ = run_on(cuda, tmp_path, monkeypatch, **model)
    assert lines == []
    assert rho < 1e-4
    assert steps == same
    assert torch.equal(first, again)


def test_update_on_cuda_does_not_allocate_more_memory_over_time(cuda):
    update, allocated = update_on(cuda), []
    batch = empty_batch(update)
    for number in range(50):
        fill(batch, update, number)
        update.run(batch, number, 0.0)
        allocated.append(torch.cuda.memory_allocated())
    assert len(set(allocated[WARM + 2 :])) == 1


def test_run_learns_on_cuda_and_resumes_on_the_cpu(tmp_path):
    """In processes, from the command line; no fallback is used; the checkpoint does not depend on the device."""
    run, command = tmp_path / "run", [sys.executable, "-m", "sfactory"]
    train = ["train", "gymnasium/CartPole-v1", "--run.device", "cuda", "--stop.env-steps", "150000", "--run.dir"]
    subprocess.run([*command, *train, str(run)], check=True, timeout=300)
    log = (run / "log.txt").read_text()
    assert "not recorded" not in log
    assert "shared memory directly" not in log
    newest = next(iter(checkpoint.candidates(run)))
    assert checkpoint.read(newest, ("model",)).state["training_return"] > 200
    more = ["resume", str(run), "--run.device", "cpu", "--stop.env-steps", "170000"]
    subprocess.run([*command, *more], check=True, timeout=300)
    assert int(next(iter(checkpoint.candidates(run))).name) >= 170_000
