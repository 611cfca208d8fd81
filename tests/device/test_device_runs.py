"""Batches and whole runs on the fake accelerator (fake_accelerator.py) equal those on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator, use_on_all_workers

from sfactory.config import BatchConfig, Config, Env, Model, ProximalConfig, Run, Sampling, Stop, TraceConfig
from sfactory.envs import Leaf, make_spec
from sfactory.learning.staging import Staging
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec, SharedState

torch.set_num_threads(1)
T, E = 5, 4


def run_on(accelerator, tmp_path, monkeypatch, **model):
    """Weights, steps, log lines and the largest |log rho| of a short lockstep run, with 64 KiB of images per group.

    Slots are released, and then poisoned, before an update begins.
    """
    device = "cpu" if accelerator is None else accelerator.device.type
    config = Config(
        run=Run(mode="lockstep", learner_threads=1, debug=True, device=device, kernels="torch"),
        env=Env(name="minatar/breakout"),
        sampling=Sampling(2, 2, 192, 4, 2),
        batch=BatchConfig(epochs=2, minibatches=2),
        trace=TraceConfig(estimator="vtrace"),
        proximal=ProximalConfig(policy="ewma"),
        model=Model(hidden=(16,), **model),
        stop=Stop(env_steps=10**6),
    )
    use_on_all_workers(accelerator, monkeypatch)
    run = Lockstep(RunSpec(config, make_spec(config.env.name, {}), str(tmp_path), 0))
    try:
        while run.learner.updates < 5:
            run.turn()
        lines = [line for kind, _, line in run.sink.drain() if kind == "log" and not line.startswith("kernels: ")]
        flat = torch.empty(run.learner.model.flat_size())
        run.learner.model.write_flat(flat)
        rho = max(float(row["offpolicy/max_abs_log_rho"]) for row in run.learner.metrics.updates)
        return flat, run.learner.env_steps, lines, rho
    finally:
        run.close()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model", [{}, {"core": "gru", "core_size": 8}])
def test_lockstep_run_on_an_accelerator_equals_the_run_on_the_cpu(tmp_path, monkeypatch, model):
    """Episodes, batches, weights: with or without pinned memory, recorded or not, the run is the same."""
    accelerator = FakeAccelerator()
    weights, steps, lines, rho = run_on(accelerator, tmp_path, monkeypatch, **model)
    assert accelerator.ever_registered > 4 * 192 * 400
    assert accelerator.registered == 0  # released with the run
    assert accelerator.recordings == 2  # one shape of inference, one update
    assert accelerator.replays > 4 * 5
    assert lines == []
    assert rho < 1e-4  # inference had the newest weights: the data have lag 0
    limited = FakeAccelerator(may_register=False, may_record=False)
    others, same_steps, lines, _ = run_on(limited, tmp_path, monkeypatch, **model)
    assert torch.equal(weights, others)
    assert steps == same_steps > 0
    assert [line.split(":")[0] for line in lines] == [
        "the GPU cannot read shared memory directly",
        "the GPU cannot read shared memory directly",
        "inference is not recorded",
        "updates are not recorded",
    ]
    monkeypatch.undo()
    plain, same_steps, lines, _ = run_on(None, tmp_path, monkeypatch, **model)
    assert (steps, lines) == (same_steps, [])
    torch.testing.assert_close(weights, plain, rtol=1e-3, atol=1e-4)  # its learning rate is a float64


@pytest.mark.parametrize("create", [lambda: None, FakeAccelerator])
def test_staging_clears_reset_rows_and_computes_the_lag(tmp_path, create):
    accelerator = create()
    config = Config(
        env=Env(name="faults/count", settings={"length": 5}), sampling=Sampling(1, 2, E, T, 2), batch=BatchConfig()
    )
    run_spec = RunSpec(config, make_spec("faults/count", {"length": 5}), str(tmp_path), 0)
    shared = SharedState.create(run_spec)
    fields = shared.trajectories
    for name in (*fields.names, "policy_version"):
        fields[name][...] = 1
    fields["valid"][1, 0, 2] = False
    fields["log_prob"][1, 0, 2] = np.nan  # left by an environment that failed
    fields["policy_version"][1, 0] = np.arange(T)
    staging = Staging(run_spec.schema, config.lanes, accelerator, direct=False)
    staging.copy([(0, 1), (1, 0)], fields, updates=3)
    batch = staging.batch
    assert bool((batch.log_prob[:, :E] == 1).all())
    assert batch.log_prob[:, E].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert batch.lag[:, 0].tolist() == [2.0] * T
    assert batch.lag[:, E].tolist() == [3.0, 2.0, 1.0, 0.0, 0.0]
    assert staging.counts().rows == 2 * T * E - E
    assert staging.lag_counts(3) == [{2: T * E}, {3: E, 2: E, 0: E, -1: E}]  # its third step is a reset
    assert {name: tuple(x.shape) for name, x in staging.to_host().items()}["reward"] == (T, 2 * E)
    shared.close()


def test_staging_reads_whose_turn_it_is_on_the_host_however_large_the_batch(tmp_path, monkeypatch):
    """Two agents in turns; the second gets the reward of its move while the first one moves."""
    monkeypatch.setattr("sfactory.learning.staging.DIRECT_BYTES", 1)
    config = Config(env=Env(name="faults/count"), sampling=Sampling(1, 1, E, T, 2))
    one = make_spec("faults/count")
    spec = replace(one, obs=one.obs | {"acting": Leaf((), "bool")}, agents=("a", "b"), acting="acting")
    run_spec = RunSpec(config, spec, str(tmp_path), 0)
    shared = SharedState.create(run_spec)
    fields = shared.trajectories
    for name in (*fields.names, "policy_version"):
        fields[name][...] = 0
    for t in range(T + 1):
        fields["acting"][0, 0, t, t % 2 :: 2] = True
    fields["valid"][0, 0] = fields["acting"][0, 0, :T]
    fields["reward"][0, 0, 2, 1::2] = 7.0
    staging = Staging(run_spec.schema, run_spec.batch_lanes, FakeAccelerator(), direct=True, acting="acting")
    staging.copy([(0, 0)], fields, updates=0)
    assert staging.batch.reward[:, 1].tolist() == [0.0, 7.0, 0.0, 0.0, 0.0]
    assert staging.batch.successor[:, 0].tolist()[0] == 2
    assert staging.batch.valid[:, 0].tolist() == [True, False, True, False, False]
    shared.close()
