"""Self-play on the fake accelerator: opponents with their own weights and memory, results equal to the CPU's."""

import numpy as np
import pytest
import torch
from fake_accelerator import FakeAccelerator, use_on_all_workers
from match_runs import write_run

import sfactory
from sfactory.envs import make_spec
from sfactory.shm.trajectory import CURRENT
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

torch.set_num_threads(1)
GAME, T, ENVS, UPDATES = "envpool/TicTacToe-v1", 12, 6, 12
FIELDS = ("action", "player", "outcome", "reward", "valid", "log_prob", "params", "value")


def played(accelerator, folder, monkeypatch, core, opponents=""):
    """Weights, pool and rows of a lockstep run against its own earlier policies and those of another run."""
    memory = {"core_size": 8} if core != "none" else {}
    config = sfactory.make_config(
        GAME,
        run={"mode": "lockstep", "device": "cpu", "seed": 3, "learner_threads": 1, "kernels": "torch", "debug": True},
        sampling={"num_samplers": 2, "groups_per_sampler": 1, "envs_per_group": ENVS, "rollout_length": T},
        batch={"minibatches": 2, "epochs": 1, "shuffle": "lanes"},  # minibatches of rows are others on a GPU
        model={"core": core, **memory, "hidden": (16,), "encoder": "mlp", "separate": False},
        checkpoint={"exact": False},
        selfplay={"share": 0.6, "every": 200, "games": 20, "opponents": opponents, "initial": True},
    )
    use_on_all_workers(accelerator, monkeypatch)
    run = Lockstep(RunSpec(config, make_spec(GAME, {}), str(folder), 0))
    taken, collect = [], run.learner._collect

    def copying():
        slots = collect()
        fields = run.shared.trajectories
        taken.extend({name: fields[name][slot].copy() for name in (*FIELDS, "acting")} for slot in slots or [])
        return slots

    run.learner._collect = copying
    try:
        while run.learner.updates < UPDATES:
            run.turn()
        flat = torch.empty(run.learner.model.flat_size())
        run.learner.model.write_flat(flat)
        loaded = len(run.inference.opponents._loaded)
        return flat, run.learner.pool.state_dict(), taken, run.learner.env_steps, loaded
    finally:
        run.close()
        monkeypatch.undo()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("core", ["gru", "none"])
def test_self_play_on_an_accelerator_equals_self_play_on_the_cpu(tmp_path, monkeypatch, core):
    memory = {"core_size": 8} if core != "none" else {}
    rival = write_run(tmp_path / "rival", GAME, 100, model={"core": core, **memory, "hidden": (24,)})
    results = []
    for name, accelerator in (
        ("cpu", None),
        ("recorded", FakeAccelerator()),
        ("plain", FakeAccelerator(may_register=False, may_record=False)),
    ):
        results.append(played(accelerator, tmp_path / name, monkeypatch, core, str(rival)))
        if name == "recorded":
            assert accelerator.replays > UPDATES
    cpu, *others = results
    assert cpu[4] >= 3, "policies of opponents that have played"
    assert cpu[1]["games"] > 30
    for weights, pool, taken, env_steps, loaded in others:
        torch.testing.assert_close(weights, cpu[0], rtol=1e-3, atol=1e-4)
        assert (pool, env_steps, loaded) == (cpu[1], cpu[3], cpu[4])
        against = 0
        for ours, expected in zip(taken, cpu[2], strict=True):
            acts = expected["acting"][:T]
            for field in FIELDS:
                rows = (ours[field][:T][acts], expected[field][:T][acts])
                np.testing.assert_allclose(*rows, rtol=1e-3, atol=1e-4, err_msg=field)
            against += int((acts & (expected["player"][:T] != CURRENT)).sum())
        assert against > 100
    assert torch.equal(others[0][0], others[1][0])
