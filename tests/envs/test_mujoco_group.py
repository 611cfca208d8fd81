"""MujocoGroup: exactly gymnasium's numbers, and independent environments."""

import json

import gymnasium
import mujoco
import numpy as np
import pytest
from sfactory_envs.gymnasium import make
from sfactory_envs.mujoco_group import MujocoGroup, task_of

from sfactory.envs import EnvError
from sfactory.envs.gymnasium_adapter import EnvGroup

SETTINGS = {
    "HalfCheetah-v5": [{}, {"frame_skip": 3, "ctrl_cost_weight": 0.5, "max_episode_steps": 40}],
    "Hopper-v5": [
        {},
        {"healthy_state_range": (-1.0, 1.0), "exclude_current_positions_from_observation": False},
        {"terminate_when_unhealthy": False, "max_episode_steps": 60},
    ],
    "Walker2d-v5": [{}, {"healthy_reward": 3.0, "reset_noise_scale": 0.1, "healthy_angle_range": (-0.3, 0.2)}],
    "Ant-v5": [
        {},
        {
            "healthy_z_range": (0.3, 0.8),
            "contact_cost_weight": 0.1,
            "exclude_current_positions_from_observation": False,
        },
        {"include_cfrc_ext_in_observation": False, "terminate_when_unhealthy": False, "max_episode_steps": 60},
    ],
    "Humanoid-v5": [
        {},
        {"include_cinert_in_observation": False, "contact_cost_weight": 1e-3, "contact_cost_range": (0.0, 3.0)},
        {"terminate_when_unhealthy": False, "max_episode_steps": 60},
    ],
    "Swimmer-v5": [{"max_episode_steps": 50}, {"exclude_current_positions_from_observation": False}],
}
CASES = [(name, settings) for name, found in SETTINGS.items() for settings in found]
E, STEPS = 5, 120
SHORTER = {"Ant-v5": 80, "Humanoid-v5": 80}  # steps of slow tasks


def single(name, settings, seeds):
    return EnvGroup(lambda: gymnasium.make(name, disable_env_checker=True, **settings), len(seeds), seeds, name=name)


def same(ours, theirs):
    (obs,), (expected,) = ours.obs.values(), theirs.obs.values()
    assert (obs == expected).all()
    for field in ("reward", "terminated", "truncated", "valid", "first"):
        assert (getattr(ours, field) == getattr(theirs, field)).all(), field
    assert ours.episodes == theirs.episodes


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_mujoco_group_equals_gymnasium_to_the_last_bit(name, settings):
    seeds = list(range(3, 3 + E))
    ours, theirs = make(name, num_envs=E, seeds=seeds, settings=settings), single(name, settings, seeds)
    assert isinstance(ours, MujocoGroup)
    assert (ours.spec.obs, ours.spec.actions) == (theirs.spec.obs, theirs.spec.actions)
    assert ours.spec.max_episode_steps == settings.get("max_episode_steps", 1000)
    draws, ends, steps = np.random.default_rng(1), 0, SHORTER.get(name, STEPS)
    assert (ours.reset()["obs"] == theirs.reset()["obs"]).all()
    for _ in range(steps):
        action = {"action": draws.normal(0, 1.5, (E, *ours.spec.actions["action"].shape)).astype(np.float32)}
        step = ours.step(action)
        same(step, theirs.step(action))
        ends += int((step.terminated | step.truncated).sum())
    assert ends >= (0 if settings.get("max_episode_steps", 1000) > STEPS and "Hopper" not in name else E)
    assert (ours.reset()["obs"] == theirs.reset()["obs"]).all(), "and their streams go on as they were"


@pytest.mark.parametrize("name", ["Hopper-v5", "Ant-v5", "Humanoid-v5"])
def test_mujoco_group_continues_exactly_after_restore(name):
    limit = {"max_episode_steps": 30} if name == "Ant-v5" else {}
    group, other = (make(name, num_envs=E, seeds=list(range(first, first + E)), settings=limit) for first in (1, 900))
    draws = np.random.default_rng(2)
    shape = (E, *group.spec.actions["action"].shape)
    actions = [
        {"action": draws.normal(0, 1, shape).astype(np.float32)} for _ in range(120 if name == "Hopper-v5" else 80)
    ]
    group.reset()
    other.reset()
    for action in actions[:40]:
        group.step(action)
    other.restore(json.loads(json.dumps(group.snapshot())))
    ended = 0
    for action in actions[40:]:
        step = group.step(action)
        same(other.step(action), step)
        ended += len(step.episodes)
    assert ended, "or nothing was seen of resets"
    assert (group.seeds, group.snapshot()) == (other.seeds, other.snapshot())


def test_mujoco_group_replaces_only_the_environment_that_fails():
    group, untouched = (make("HalfCheetah-v5", num_envs=3, seeds=[1, 2, 3]) for _ in range(2))
    group.reset()
    untouched.reset()
    action = np.full((3, 6), 0.3, np.float32)
    for _ in range(4):
        group.step({"action": action})
        untouched.step({"action": action})
    spoiled = action.copy()
    spoiled[1] = np.nan
    step, plain = group.step({"action": spoiled}), untouched.step({"action": action})
    assert [fault.env for fault in step.faults] == [1]
    assert "illegal action" in step.faults[0].message
    assert "(seed 2, step 4 of the episode)" in step.faults[0].message
    assert step.valid.tolist() == [True, False, True]
    assert step.first.tolist() == [False, True, False]
    assert step.reward[1] == 0
    for env in (0, 2):
        assert (step.obs["obs"][env] == plain.obs["obs"][env]).all()
        assert step.reward[env] == plain.reward[env]
    assert group.seeds[1] not in (1, 2, 3)


def test_mujoco_group_reports_non_finite_numbers_for_that_environment(monkeypatch):
    group = make("HalfCheetah-v5", num_envs=3, seeds=[1, 2, 3])
    group.reset()
    advance = group.advance

    def spoil(action):
        native = advance(action)
        group._states[0, group._qvel] = np.inf
        return native._replace(obs=group._observed())

    monkeypatch.setattr(group, "advance", spoil)
    step = group.step({"action": np.zeros((3, 6), np.float32)})
    assert [fault.env for fault in step.faults] == [0]
    assert "NaN or infinity" in step.faults[0].message
    assert np.isfinite(step.obs["obs"]).all()
    monkeypatch.undo()
    assert not group.step({"action": np.zeros((3, 6), np.float32)}).faults


def test_task_of_leaves_other_tasks_as_single_environments():
    for name in ("Ant-v4", "HumanoidStandup-v5", "InvertedPendulum-v5"):
        assert isinstance(make(name, num_envs=2, seeds=[1, 2]), EnvGroup)

    class Heavier(gymnasium.envs.mujoco.half_cheetah_v5.HalfCheetahEnv):
        pass

    assert task_of(Heavier()) is None, "what a subclass changes is not known"
    assert task_of(gymnasium.wrappers.ClipAction(gymnasium.make("Hopper-v5"))) is None


def test_mujoco_group_replaces_one_environment_when_physics_fail(monkeypatch):
    """For example mujoco.FatalError, if a model has too many contacts."""
    group = make("HalfCheetah-v5", num_envs=3, seeds=[1, 2, 3])
    group.reset()
    real, calls = mujoco.mj_step, []

    def step(*how):
        calls.append(how)
        if len(calls) == 2:
            raise mujoco.FatalError("mj_stackAlloc: out of memory")
        real(*how)

    monkeypatch.setattr(mujoco, "mj_step", step)
    step = group.step({"action": np.zeros((3, 6), np.float32)})
    assert [fault.env for fault in step.faults] == [1]
    assert "out of memory" in step.faults[0].message
    assert step.valid.tolist() == [True, False, True]
    assert not group.step({"action": np.zeros((3, 6), np.float32)}).faults


def test_mujoco_group_accepts_any_action_in_a_reset_step():
    group = make("Hopper-v5", num_envs=2, seeds=[1, 2], settings={"max_episode_steps": 1})
    group.reset()
    group.step({"action": np.zeros((2, 3), np.float32)})
    step = group.step({"action": np.full((2, 3), np.nan, np.float32)})
    assert not step.faults
    assert step.first.all()


def test_mujoco_group_refuses_the_snapshot_of_an_earlier_version():
    with pytest.raises(EnvError, match="saved by an earlier version"):
        make("Hopper-v5", num_envs=2, seeds=[1, 2]).restore({"envs": [], "group": []})
