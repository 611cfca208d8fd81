"""A lockstep run with every trace, baseline and step rule; runs that are resumed with them: `test_exact_resume`."""

import pytest
import torch

import sfactory
from sfactory.envs import make_spec
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

CASES = {
    "retrace": {"trace": {"estimator": "retrace"}, "surrogate": {"behavior_weight": "trace"}},
    "truncated importance sampling": {"trace": {"estimator": "truncated_is"}},
    "recursive retrace": {"trace": {"estimator": "recursive_retrace"}},
    "baseline": {"trace": {"baseline": "optimal"}},
    "ess": {"optim": {"schedule": "ess"}},
    "staleness": {"optim": {"schedule": "staleness"}},
    "KL between bounds": {"optim": {"schedule": "kl_adaptive", "lr_min": 1e-4, "lr_max": 4e-3}},
    "Adam-Rel": {"optim": {"adam_rel": True}},
    "SFPO": {"optim": {"sfpo_steps": 2, "sfpo_window": 4}, "proximal": {"policy": "ewma"}},
}


def weights_and_rates(folder, sections, updates=8):
    """Of a run at lag 3: the weights in the end, and the learning rate of every update."""
    config = sfactory.make_config(
        "classic/cartpole",
        run={"mode": "lockstep"},
        sampling={"num_samplers": 1, "envs_per_group": 4, "rollout_length": 8},
        batch={"minibatches": 2, "epochs": 1, "forced_lag": 3},
        **{**sections, "optim": {"schedule": "constant", **sections.get("optim", {})}},
    )
    run, rates = Lockstep(RunSpec(config, make_spec(config.env.name, {}), str(folder), 0)), []
    try:
        while run.learner.updates < updates:
            if run.turn():
                rates.append(run.learner.update.lr)
                assert run.learner.counters.skipped_in_a_row == 0
        return run.learner.update.flat.values.clone(), rates
    finally:
        run.close()


@pytest.mark.parametrize("case", CASES)
def test_lockstep_runs_are_the_same_twice_and_other_than_without(case, tmp_path):
    found, rates = weights_and_rates(tmp_path / "a", CASES[case])
    again, _ = weights_and_rates(tmp_path / "b", CASES[case])
    plain, constant = weights_and_rates(tmp_path / "c", {})
    assert torch.equal(found, again)
    assert not torch.equal(found, plain)
    assert found.isfinite().all()
    if case == "staleness":
        assert rates == [constant[0] / max(1, min(update, 3)) for update in range(8)]
    elif CASES[case].get("optim", {}).get("schedule") is None:
        assert rates == constant
