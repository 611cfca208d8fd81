"""One decision of `run.precision auto` per run: learner, inference, its next generation and a resume agree."""

from dataclasses import replace

import pytest
import torch

from sfactory.config import Config, Env, Model, Run, Sampling
from sfactory.envs import ActionLeaf, EnvSpec, Leaf
from sfactory.learning import precision as module
from sfactory.run import checkpoint
from sfactory.shm.mailbox import NOTHING
from sfactory.workers.inference import Inference
from sfactory.workers.learner import Learner
from sfactory.workers.shared import Precision, RunSpec, SharedState
from sfactory.workers.worker import ListSink

torch.set_num_threads(1)


def make_run_spec(tmp_path, precision="auto"):
    actions = {"action": ActionLeaf((), "int64", "discrete", (3,))}
    spec = EnvSpec(name="faults/count", obs={"obs": Leaf((1, 36, 36), "uint8")}, actions=actions)
    config = Config(
        env=Env("faults/count"),
        run=Run(device="cpu", precision=precision, learner_threads=1),
        sampling=Sampling(1, 2, 4, 8, 2),
        model=Model(hidden=(16,)),
    )
    return RunSpec(config, spec, str(tmp_path), 0)


def run_workers(run_spec):
    """Learner, precision in which inference computes, lines of the log."""
    shared, sink = SharedState.create(run_spec), ListSink()
    early = Inference(shared, sink)  # inference may start before the learner has decided
    assert early.mailbox.version() == NOTHING
    learner = Learner(shared, sink)
    assert early.mailbox.version() == 0
    restarted = Inference(shared, sink)
    (dtype,) = {acted_in(early), acted_in(restarted)}
    return learner, dtype, [line for kind, _, line in sink.drain() if kind == "log" and line.startswith("precision: ")]


def acted_in(inference):
    """Type of the numbers of a pass."""
    dtypes = []
    convolution = next(m for m in inference.model.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda layer, inputs, output: dtypes.append(output.dtype))
    inference.batch.run(1)
    return dtypes[-1]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "BUDGET_S", 0.0)
    monkeypatch.setattr(module, "cpu_flags", set)  # measure on every processor


@pytest.mark.parametrize(
    ("min_speedup", "name", "dtype"), [(0.0, "bf16", torch.bfloat16), (1e9, "fp32", torch.float32)]
)
def test_inference_and_learner_compute_in_the_precision_that_the_learner_has_chosen(
    tmp_path, monkeypatch, min_speedup, name, dtype
):
    monkeypatch.setattr(module, "MIN_SPEEDUP", min_speedup)
    run_spec = make_run_spec(tmp_path)
    learner, found, (line,) = run_workers(run_spec)
    assert found == dtype
    assert learner.update.config.run.precision == name
    assert line.startswith(f"precision: {name}, ")

    learner.checkpointing.save(last=True)
    (path,) = checkpoint.candidates(tmp_path)
    assert checkpoint.recorded_precision(path) == name
    monkeypatch.setattr(module, "MIN_SPEEDUP", 1e9 - min_speedup)  # a new run would choose the other one
    resumed, found, lines = run_workers(replace(run_spec, resume_from=str(path)))
    assert found == dtype
    assert resumed.update.config.run.precision == name
    assert lines == [f"precision: {name}, as in the checkpoint"]


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_workers_compute_in_the_precision_of_the_settings(tmp_path, name, dtype):
    learner, found, lines = run_workers(make_run_spec(tmp_path, name))
    assert (found, lines) == (dtype, [])
    assert learner.words.precision == Precision[name.upper()]
    learner.words.precision = Precision.FP32  # in the memory that a lockstep checkpoint of an older version restores
    assert acted_in(Inference(learner.shared, ListSink())) == dtype


def test_inference_in_bf16_does_not_use_the_native_kernels(tmp_path):
    """A small network under auto, resumed in the bf16 that its settings named before; the kernels compute in fp32."""
    run_spec = make_run_spec(tmp_path)
    small = replace(run_spec, config=replace(run_spec.config, model=Model(encoder="mlp", hidden=(16,))))
    shared = SharedState.create(small)
    inference = Inference(shared, ListSink())
    shared.learner[0].precision = Precision.BF16
    assert inference.native is None
    assert inference.precision == "bf16"
