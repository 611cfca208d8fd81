"""Batches and whole runs on a device that does all as late as it may (late.py): those of the host."""

import numpy as np
import pytest
import torch
from fake_accelerator import Late, everything_on

from sfactory.config import BatchConfig, Config, Env, Model, ProximalConfig, Run, Sampling, Stop, TraceConfig
from sfactory.envs import make_spec
from sfactory.learning.staging import Staging
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec, SharedState

torch.set_num_threads(1)
T, E = 5, 4


def run_on(late, tmp_path, monkeypatch, **model):
    """Weights, steps, log lines and the largest |log rho| of a short lockstep run, with pictures of 64 KiB a group.
    Slots are free, and then poisoned, before an update begins."""
    device = "cpu" if late is None else late.device.type
    config = Config(
        run=Run(mode="lockstep", learner_threads=1, debug=True, device=device),
        env=Env(name="minatar/breakout"),
        sampling=Sampling(2, 2, 192, 4, 2),
        batch=BatchConfig(epochs=2, minibatches=2),
        trace=TraceConfig(estimator="vtrace"),
        proximal=ProximalConfig(policy="ewma"),
        model=Model(hidden=(16,), **model),
        stop=Stop(env_steps=10**6),
    )
    everything_on(late, monkeypatch)
    run = Lockstep(RunSpec(config, make_spec(config.env.name, {}), str(tmp_path), 0))
    try:
        while run.learner.updates < 5:
            run.turn()
        said = [message[2] for message in run.sink.drain() if message[0] == "log"]
        flat = torch.empty(run.learner.model.flat_size())
        run.learner.model.write_flat(flat)
        rho = max(float(row["offpolicy/max_abs_log_rho"]) for row in run.learner.metrics)
        return flat, run.learner.env_steps, said, rho
    finally:
        run.close()


@pytest.mark.parametrize("model", [{}, {"core": "gru", "core_size": 8}])
def test_a_run_on_a_device_is_the_run_on_the_host(tmp_path, monkeypatch, model):
    """Games, batches, weights: through pinned memory or past it, recorded or step by step, it is the same run."""
    late = Late()
    weights, steps, said, rho = run_on(late, tmp_path, monkeypatch, **model)
    assert late.ever_registered > 4 * 192 * 400
    assert late.registered == 0  # given back with the run
    assert late.recordings == 2  # one shape of inference, one update
    assert late.replays > 4 * 5
    assert said == []
    assert rho < 1e-4  # who acted had the newest weights: the data have lag 0
    poor = Late(may_register=False, may_record=False)
    others, same_steps, said, _ = run_on(poor, tmp_path, monkeypatch, **model)
    assert torch.equal(weights, others)
    assert steps == same_steps > 0
    assert [line.split(":")[0] for line in said] == [
        "the GPU may not read the shared memory by itself",
        "the GPU may not read the shared memory by itself",
        "inference is not recorded",
        "updates are not recorded",
    ]
    monkeypatch.undo()
    plain, same_steps, said, _ = run_on(None, tmp_path, monkeypatch, **model)
    assert (steps, said) == (same_steps, [])
    torch.testing.assert_close(weights, plain, rtol=1e-3, atol=1e-4)  # its learning rate is a float64


@pytest.mark.parametrize("kind", [lambda: None, Late])
def test_a_batch_says_nothing_of_reset_rows_and_counts_its_lag(tmp_path, kind):
    late = kind()
    config = Config(
        env=Env(name="faults/count", settings={"length": 5}), sampling=Sampling(1, 2, E, T, 2), batch=BatchConfig()
    )
    run_spec = RunSpec(config, make_spec("faults/count", {"length": 5}), str(tmp_path), 0)
    shared = SharedState.create(run_spec)
    fields = shared.trajectories
    for name in (*fields.names, "policy_version"):
        fields[name][...] = 1
    fields["valid"][1, 0, 2] = False
    fields["log_prob"][1, 0, 2] = np.nan  # what an environment left behind that failed
    fields["policy_version"][1, 0] = np.arange(T)
    staging = Staging(run_spec.schema, config.lanes, late, direct=False)
    staging.copy([(0, 1), (1, 0)], fields, updates=3)
    batch = staging.batch
    assert bool((batch.log_prob[:, :E] == 1).all())
    assert batch.log_prob[:, E].tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert batch.lag[:, 0].tolist() == [2.0] * T
    assert batch.lag[:, E].tolist() == [3.0, 2.0, 1.0, 0.0, 0.0]
    assert staging.valid_rows == 2 * T * E - E
    assert [sorted(set(lag.tolist())) for lag in staging.lags(3)] == [[2], [-1, 0, 2, 3]]
    assert {name: tuple(x.shape) for name, x in staging.whole().items()}["reward"] == (T, 2 * E)
    shared.close()
