"""Lockstep runs that combine algorithms, replay, corrections, step rules, memory and self-play.

Each part has tests of its own. Here is what they do together: a resume goes on to the bit, recorded updates equal
updates step by step, and no update is skipped. In the runs with `debug`, memory that was never written is NaN.
"""

import pytest
import torch
from fake_accelerator import FakeAccelerator, use_on_all_workers

import sfactory
from sfactory.device.accelerator import Replay
from sfactory.envs import make_spec
from sfactory.supervisor import lockstep_state
from sfactory.supervisor.lockstep import Lockstep
from sfactory.workers.shared import RunSpec

torch.set_num_threads(1)
REPLAY = {"ratio": 1.5, "max_age": 3}
PPG = {"algorithm": {"name": "ppg"}, "ppg": {"policy_updates": 3, "phase_epochs": 2}}
CASES = {
    "replay, bpo, forced lag, Adam-Rel, value targets": {
        "replay": REPLAY,
        "surrogate": {"objective": "bpo"},
        "batch": {"forced_lag": 2},
        "optim": {"adam_rel": True, "schedule": "staleness"},
        "normalize": {"value_targets": True, "obs": True, "reward": True},
    },
    "replay, r2vpo, m2po, SFPO, gru": {
        "replay": REPLAY,
        "surrogate": {"objective": "r2vpo", "mask": "m2po"},
        "batch": {"epochs": 1},
        "optim": {"sfpo_steps": 2, "sfpo_window": 3, "schedule": "ess"},
        "model": {"core": "gru", "core_size": 8, "separate": False},
    },
    "replay, minpro, baseline": {
        "replay": REPLAY,
        "surrogate": {"objective": "minpro"},
        "trace": {"estimator": "rbis", "baseline": "optimal"},
    },
    "replay, sapo, baseline, snapshots by step": {
        "replay": REPLAY,
        "surrogate": {"objective": "sapo"},
        "proximal": {"policy": "snapshot", "snapshot_age": 0},
        "trace": {"estimator": "truncated_is", "baseline": "optimal"},
        "optim": {"schedule": "kl_adaptive"},
    },
    "replay, pqn, forced lag": {
        "replay": REPLAY,
        "algorithm": {"name": "pqn"},
        "batch": {"forced_lag": 2},
        "optim": {"schedule": "staleness", "adam_rel": True},
    },
    "ppg, SFPO, ewma, Adam-Rel, forced lag": {
        **PPG,
        "batch": {"epochs": 1, "forced_lag": 2},
        "proximal": {"policy": "ewma"},
        "optim": {"sfpo_steps": 1, "adam_rel": True, "schedule": "kl_adaptive"},
        "normalize": {"value_targets": True},
    },
    "replay, dae, ewma, forced lag, value targets": {
        "replay": REPLAY,
        "algorithm": {"name": "dae"},
        "dae": {"advantages": "all"},
        "proximal": {"policy": "ewma"},
        "batch": {"forced_lag": 2},
        "normalize": {"value_targets": True, "reward": True},
        "optim": {"schedule": "kl_adaptive"},
    },
    "dae, actions taken, r2vpo, m2po, SFPO, gru": {
        "algorithm": {"name": "dae"},
        "dae": {"advantages": "taken"},
        "surrogate": {"objective": "r2vpo", "mask": "m2po"},
        "batch": {"epochs": 1},
        "optim": {"sfpo_steps": 2, "sfpo_window": 3, "schedule": "ess"},
        "model": {"core": "gru", "core_size": 8, "separate": False},
    },
    "ppg, bpo, erc, gru": {
        **PPG,
        "surrogate": {"objective": "bpo", "mask": "erc"},
        "model": {"core": "gru", "core_size": 8, "separate": False},
    },
}
SELF_PLAY = {"selfplay": {"share": 0.5, "every": 60, "pool": 4, "games": 5}}


@pytest.fixture
def make(tmp_path):
    made = []

    def start(env, **sections):
        sampling = {"num_samplers": 1, "groups_per_sampler": 2, "envs_per_group": 4, "rollout_length": 6}
        shared = {
            "run": {"mode": "lockstep", "debug": True},
            "sampling": sampling,
            "stop": {"env_steps": 4000},
            "batch": {"minibatches": 2, "epochs": 2},
            "model": {"hidden": (16,)},
        }
        merged = {name: {**shared.get(name, {}), **sections.get(name, {})} for name in {*shared, *sections}}
        config = sfactory.make_config(env, **merged)
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Lockstep(RunSpec(config, make_spec(config.env.name, config.env.options), str(folder), 0)))
        return made[-1]

    yield start
    for run in made:
        run.close()


def train(run, updates):
    while run.learner.updates < updates:
        if run.turn():
            assert run.learner.counters.skipped_in_a_row == 0
    return run


def state_of(run):
    parts = run.learner.update.state_dict()
    return {f"{part}/{name}": x.clone() for part, tensors in parts.items() for name, x in tensors.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert torch.equal(x, other[name]), name


@pytest.mark.parametrize("case", CASES)
def test_combined_settings_resume_to_the_bit(case, make):
    run = train(make("classic/cartpole", **CASES[case]), 5)
    arrays, learner = lockstep_state.capture(run, {}), run.learner
    parts = {n: {k: x.clone() for k, x in part.items()} for n, part in learner.update.state_dict().items()}
    saved, counters = learner.checkpointing.state(), learner.counters.state_dict()
    other = make("classic/cartpole", **CASES[case])
    update = other.learner.update
    update.load_state_dict(parts)
    other.learner.counters.load_state_dict(counters)
    update.lr, update.kl, update.ess, update.lag = (saved[name] for name in ("lr", "kl", "ess", "lag"))
    if update.slow_fast is not None:
        update.slow_fast.set_state(saved["sfpo"])
    lockstep_state.restore(other, arrays)
    assert_same(state_of(train(run, 10)), state_of(train(other, 10)))
    assert run.learner.env_steps == other.learner.env_steps
    sampled = run.shared.slot_table.row_counts()
    assert sampled.trained == 10 * run.learner.run_spec.batch_rows, "replayed rows and auxiliary phases are not counted"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("env", ["classic/cartpole", "envpool/TicTacToe-v1"])
def test_combined_settings_on_an_accelerator_equal_updates_step_by_step(env, case, make, monkeypatch):
    more = SELF_PLAY if env.startswith("envpool") else {}
    found = []
    for may_record in (True, False):
        accelerator = FakeAccelerator(may_record=may_record)
        use_on_all_workers(accelerator, monkeypatch)
        run = train(make(env, **CASES[case], **more), 8)
        found.append((state_of(run), run.learner.env_steps))
        if isinstance(run.learner.update.device_work, Replay):
            assert bool(accelerator.recordings) == may_record
        if more:
            assert (run.shared.trajectories["player"] >= 0).any(), "opponents act"
    assert_same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
