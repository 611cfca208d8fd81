"""The promises of test_recorded_updates, test_inference_batch and test_device_runs on a CUDA device: `make gpu`."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from test_device_runs import run_on
from test_inference_batch import WIDE, E, answers_on
from test_recorded_updates import CASES, empty_batch, fill, trained, update_on

from sfactory.device.accelerator import WARM, Accelerator, NotRecordable, accelerator_of
from sfactory.run import checkpoint
from sfactory.shm.arena import Arena, Field

pytestmark = pytest.mark.gpu


class StepByStep:
    """A device that records nothing."""

    def __init__(self, device: Accelerator) -> None:
        self.inner = device

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def record(self, work):
        raise NotRecordable("not asked for")


@pytest.fixture
def cuda():
    assert torch.cuda.is_available(), "tests marked gpu need a CUDA device"
    device = accelerator_of(torch.device("cuda"), exact=True)
    yield device
    device.release()


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_update_is_the_update(cuda, case):
    said = []
    recorded, rows = trained(update_on(cuda, said=said, **CASES[case]))
    stepwise, other_rows = trained(update_on(StepByStep(cuda), **CASES[case]))
    assert said == []
    for name, x in stepwise.items():
        torch.testing.assert_close(recorded[name], x, rtol=1e-4, atol=1e-6, msg=name)
    for ours, theirs in zip(rows, other_rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("case", ["rows", "ewma", "gru", "normalisers", "squashed box"])
def test_an_update_on_the_gpu_is_that_of_the_cpu(cuda, case):
    ours, _ = trained(update_on(cuda, **CASES[case]), updates=WARM + 2)
    theirs, _ = trained(update_on(None, **CASES[case]), updates=WARM + 2)
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name].cpu(), x, rtol=1e-2, atol=1e-3, msg=name)


def test_the_gpu_reads_shared_memory_by_itself(cuda):
    arena = Arena.create({"wide": Field((64, E, WIDE), "float32")})
    assert cuda.register(arena.whole)
    assert cuda.register(arena.whole), "the other worker of one process asks again"
    arena["wide"][...] = np.arange(64)[:, None, None]
    assert torch.from_numpy(arena["wide"][3]).is_pinned()
    there = torch.zeros(64, E, WIDE, device=cuda.device)
    for group in range(64):
        cuda.copy(there[group], torch.from_numpy(arena["wide"][group]))
    cuda.wait()
    arena["wide"][...] = -1.0
    assert there[:, 0, 0].tolist() == list(range(64))
    cuda.release()
    arena.close()


@pytest.mark.parametrize("direct", [True, False])
def test_inference_batch_of_the_gpu_are_those_of_the_host(cuda, direct):
    arena = Arena.create({"wide": Field((5, E, WIDE), "float32"), "small": Field((5, E, 1), "float32")})
    assert cuda.register(arena.whole)
    said, draws = [], np.random.default_rng(0)
    device, host, _ = answers_on(cuda, direct=direct, say=said.append)
    for groups in (5, 1, 3, 2, 5, 4, 1):
        for name in ("wide", "small"):
            arena[name][...] = draws.random(arena[name].shape, np.float32)
            for place in range(groups):
                device.stage(name, place, arena[name][place])
                host.stage(name, place, arena[name][place])
        ours, theirs = device.run(groups), host.run(groups)
        for name, x in theirs.items():
            np.testing.assert_allclose(ours[name], x, rtol=1e-4, atol=1e-5)
    assert said == []
    cuda.release()


@pytest.mark.parametrize("model", [{}, {"core": "gru", "core_size": 8}])
def test_the_same_seed_is_the_same_run(cuda, tmp_path, monkeypatch, model):
    first, steps, said, rho = run_on(cuda, tmp_path, monkeypatch, **model)
    again, same, _, _ = run_on(cuda, tmp_path, monkeypatch, **model)
    assert said == []
    assert rho < 1e-4
    assert steps == same
    assert torch.equal(first, again)


def test_an_update_takes_no_more_memory_the_fiftieth_time(cuda):
    update, taken = update_on(cuda), []
    batch = empty_batch(update)
    for number in range(50):
        fill(batch, update, number)
        update.run(batch, number, 0.0)
        taken.append(torch.cuda.memory_allocated())
    assert len(set(taken[WARM + 2 :])) == 1


def test_a_run_learns_on_the_gpu_and_goes_on_without_it(tmp_path):
    """In processes, with what a user types; nothing is done a slower way; its checkpoint is anybody's."""
    run, command = tmp_path / "run", [sys.executable, "-m", "sfactory"]
    train = ["train", "gymnasium/CartPole-v1", "--run.device", "cuda", "--stop.env-steps", "150000", "--run.dir"]
    subprocess.run([*command, *train, str(run)], check=True, timeout=300)
    log = (run / "log.txt").read_text()
    assert "not recorded" not in log
    assert "by itself" not in log
    newest = next(iter(checkpoint.candidates(run)))
    assert checkpoint.load(newest, ("model",)).state["training_return"] > 200
    more = ["resume", str(run), "--run.device", "cpu", "--stop.env-steps", "170000"]
    subprocess.run([*command, *more], check=True, timeout=300)
    assert int(next(iter(checkpoint.candidates(run))).name) >= 170_000
