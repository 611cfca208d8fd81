"""Memory family: observations, rewards, snapshots."""

import json

import gymnasium
import numpy as np
import pytest

from sfactory.envs import EnvError, make_group

FORWARD, LEFT, RIGHT = range(3)


def tmaze(seeds=(1, 2, 3, 4), **settings):
    group = make_group("memory/tmaze", len(seeds), list(seeds), settings)
    return group, group.reset()["obs"].copy()


def steps(group, *actions):
    return [group.step({"action": np.broadcast_to(action, group.num_envs).copy()}) for action in actions]


def test_tmaze_shows_the_cue_only_once():
    group, begin = tmaze(range(40), length=6)
    assert set(begin[:, 0]) == {-1.0, 1.0}
    assert not begin[:, 1].any()
    for t in range(1, 7):
        (step,) = steps(group, FORWARD)
        assert not step.obs["obs"][:, 0].any()
        assert (step.obs["obs"][:, 1] == (t == 6)).all()
        assert not step.reward.any()
        assert not step.terminated.any()


@pytest.mark.parametrize("right", [True, False])
def test_tmaze_turn_at_the_junction_is_rewarded_and_ends_the_episode(right):
    group, begin = tmaze(length=3)
    steps(group, FORWARD, FORWARD, FORWARD)
    (step,) = steps(group, np.where((begin[:, 0] > 0) == right, RIGHT, LEFT))
    assert (step.reward == (1.0 if right else -1.0)).all()
    assert step.terminated.all()
    assert {episode.episodic_return for episode in step.episodes} == {1.0 if right else -1.0}
    assert {episode.length for episode in step.episodes} == {4}


def test_tmaze_action_that_does_not_move_costs():
    group, _ = tmaze(length=2)
    walls = steps(group, LEFT, RIGHT, FORWARD, FORWARD, FORWARD)
    assert [float(step.reward[0]) for step in walls] == pytest.approx([-0.1, -0.1, 0.0, 0.0, -0.1])
    assert walls[-1].obs["obs"][0, 1] == 1, "at the junction still"
    assert not any(step.terminated.any() for step in walls)


def test_tmaze_truncates_an_episode_without_a_turn():
    group, _ = tmaze(length=2)
    played = steps(group, *[FORWARD] * 500)
    assert not any(step.truncated.any() for step in played[:-1])
    assert played[-1].truncated.all()
    assert not played[-1].terminated.any()


def test_memory_cartpole_is_cartpole_without_velocities():
    group = make_group("memory/cartpole", 1, [7])
    stock = gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(group.reset()["obs"][0], stock.reset(seed=7)[0][::2])
    for t in range(200):
        step = group.step({"action": np.array([t % 2])})
        seen, reward, terminated, _, _ = stock.step(t % 2)
        np.testing.assert_array_equal(step.obs["obs"][0], seen[::2])
        assert (step.reward[0], step.terminated[0]) == (reward, terminated)
        if terminated:
            return
    raise AssertionError("the pole should have fallen")


@pytest.mark.parametrize("task", ["tmaze", "cartpole"])
def test_memory_group_continues_exactly_after_restore(task):
    one, two = (make_group(f"memory/{task}", 3, seeds) for seeds in ([1, 2, 3], [7, 8, 9]))
    draws = np.random.default_rng(0)
    one.reset(), two.reset()
    count = one.spec.actions["action"].sizes[0]
    for _ in range(40):
        one.step({"action": draws.integers(0, count, 3)})
    two.restore(json.loads(json.dumps(one.snapshot())))
    episodes = 0
    for _ in range(200):
        action = {"action": draws.integers(0, count, 3)}
        a, b = one.step(action), two.step(action)
        np.testing.assert_array_equal(a.obs["obs"], b.obs["obs"])
        assert a.episodes == b.episodes
        episodes += len(a.episodes)
    assert episodes > (3 if task == "cartpole" else 0)


def test_memory_family_reports_unknown_tasks_and_settings():
    with pytest.raises(EnvError, match="did you mean tmaze"):
        make_group("memory/tmase", 1, [0])
    with pytest.raises(EnvError, match="length must be >= 1"):
        make_group("memory/tmaze", 1, [0], {"length": 0})
