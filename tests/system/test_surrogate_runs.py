"""Short lockstep runs of every objective and mask, and exact resumes of those with state."""

import math

import numpy as np
import pytest
import torch
from builders import TINY, trained

import sfactory
from sfactory.algo.surrogates.options import DISCRETE_ONLY, MASK_USES
from sfactory.algo.surrogates.registry import SURROGATES
from sfactory.config import with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.envs import make_spec
from sfactory.play.export import export
from sfactory.run import checkpoint
from sfactory.supervisor import train as training
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

pytestmark = pytest.mark.usefixtures("forked")

CASES = {
    **{name: {"objective": name} for name in SURROGATES},
    "impala": {"objective": "impala", "behavior_weight": "trace"},
    "ppo": {"objective": "ppo", "behavior_weight": "none"},
    "mdpo without annealing": {"objective": "mdpo", "kl_anneal": False},
    "bpo without a median head": {"objective": "bpo", "median_head": False},
    **{f"mask {name}": {"mask": name} for name in MASK_USES},
}


def parts_of(folder):
    found = checkpoint.read(checkpoint.newest(folder), checkpoint.PARTS)
    return {f"{part}/{name}": x for part, tensors in found.parts.items() for name, x in tensors.items()}


def lockstep_metrics(folder, target, **settings):
    """Metrics of the updates of a short lockstep run in this process, and the learner's network."""
    config = build(*target_layers(target))
    config = with_settings(config, {"run.mode": "lockstep", "sampling.envs_per_group": 4, "sampling.rollout_length": 16,
                                    "sampling.num_samplers": 1, "stop.env_steps": 800, **settings})  # fmt: skip
    run = Lockstep(RunSpec(config, make_spec(config.env.name, config.env.options), str(folder), 0))
    update, rows = run.learner.update, []
    inner = update.run
    update.run = lambda *arguments: rows.append(dict(found := inner(*arguments))) or found
    while not run.learner.finished():
        run.turn()
        run.sink.drain()
    run.close()
    return rows, update.model


@pytest.mark.parametrize("case", CASES)
def test_every_objective_trains_in_lockstep(tmp_path, case):
    check_lockstep_run(tmp_path, "classic/cartpole", case)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", [case for case in CASES if case not in DISCRETE_ONLY])
def test_every_objective_trains_continuous_actions_in_lockstep(tmp_path, case):
    check_lockstep_run(tmp_path, "classic/pendulum", case)


def check_lockstep_run(tmp_path, target, case):
    """On data two updates old, in four steps per update: every number that is reported is finite."""
    surrogate = CASES[case]
    settings = {f"surrogate.{name}": value for name, value in surrogate.items()}
    lag = {"batch.minibatches": 2, "batch.epochs": 2, "batch.forced_lag": 2, "trace.estimator": "vtrace"}
    rows, model = lockstep_metrics(tmp_path, target, **settings, **lag)
    assert len(rows) >= 5
    for row in rows:
        assert all(math.isfinite(x) for x in row.values()), row
        assert row["skipped"] == 0
    assert ("losses/maskfrac" in rows[-1]) == (surrogate.get("mask", "none") != "none")
    assert ("losses/dual" in rows[-1]) == (case == "r2vpo")
    assert ("losses/bound_low" in rows[-1]) == (case == "bapo")
    assert (model.median_head is not None) == (case == "bpo")


@pytest.mark.parametrize("objective", ["r2vpo", "bpo"])
def test_objective_with_state_resumes_exactly(tmp_path, objective):
    settings = dict(
        surrogate={"objective": objective}, optim={"schedule": "constant"},
        batch={"minibatches": 2, "epochs": 2, "forced_lag": 1},
    )  # fmt: skip

    def run(name, steps, resume=False):
        sections = {**TINY, **settings, "stop": {"env_steps": steps}}
        outcome = training.train(sfactory.make_config("classic/cartpole", **sections), tmp_path / name, resume=resume)
        assert outcome.code == 0, outcome.sentence
        return parts_of(tmp_path / name)

    whole, half = run("whole", 1600), run("halves", 800)
    state = {"r2vpo": "proximal/dual.value", "bpo": "model/median_head.weight"}[objective]
    assert not torch.equal(half[state], whole[state])
    found = run("halves", 1600, resume=True)
    assert found.keys() == whole.keys()
    for name, x in whole.items():
        assert torch.equal(found[name], x), name


def test_policy_with_a_median_head_is_loaded_exported_and_played(tmp_path):
    folder = trained(tmp_path / "run", "classic/cartpole", surrogate={"objective": "bpo"})
    policy = sfactory.load_policy(folder)
    assert policy.model.median_head is not None
    assert policy.act(np.zeros((3, 4), np.float32)) is not None
    written = export(policy, tmp_path / "policy.pt2")
    assert written.difference < 1e-4


def test_init_from_a_run_without_a_median_head_is_refused(tmp_path):
    teacher = trained(tmp_path / "teacher", "classic/cartpole")
    config = sfactory.make_config(
        "classic/cartpole", **{**TINY, "run": {"mode": "lockstep", "init_from": str(teacher)}},
        surrogate={"objective": "bpo"},
    )  # fmt: skip
    with pytest.raises(ValueError, match="another network: its median head, which only"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
