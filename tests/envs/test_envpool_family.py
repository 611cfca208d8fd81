"""envpool family: autoreset, dtypes, seeds, episode ends, refused settings."""

import itertools

import numpy as np
import psutil
import pytest
from native import resets_after_an_illegal_action
from sfactory_envs import envpool as family

from sfactory.envs import EnvError, make_group, make_spec

TASKS = ["Pong-v5", "HalfCheetah-v5", "CartPole-v1", "LunarLander-v3", "CheetahRun-v1"]


def group_of(task, num_envs=3, seeds=None, **settings):
    return make_group(f"envpool/{task}", num_envs, seeds or list(range(5, 5 + num_envs)), settings)


def actions_of(group, steps, seed=0):
    draws = np.random.default_rng(seed)
    for _ in range(steps):
        yield {
            name: draws.integers(0, leaf.sizes[0], group.num_envs)
            if leaf.kind == "discrete"
            else draws.uniform(-1, 1, (group.num_envs, *leaf.shape)).astype(np.float32)
            for name, leaf in group.spec.actions.items()
        }


class Watched:
    """envpool environment that keeps the result of its last step."""

    def __init__(self, env):
        self.env = env

    def reset(self):
        return self.env.reset()

    def step(self, action):
        self.action, self.last = action, self.env.step(action)
        return self.last


def play(group, steps, seed=0):
    """Return (step, result of envpool) for each step, as copies."""
    watched = group.env = Watched(group.env)
    group.reset()
    found = []
    for action in actions_of(group, steps, seed):
        step = group.step(action)
        obs = {name: array.copy() for name, array in step.obs.items()}
        found.append((step._replace(obs=obs, reward=step.reward.copy()), watched.last))
    return found


def test_envpool_spec_describes_the_task():
    pong, cheetah, cartpole = (make_spec(f"envpool/{task}") for task in TASKS[:3])
    assert (pong.obs["obs"].shape, pong.obs["obs"].dtype) == ((4, 84, 84), "uint8")
    assert pong.actions["action"].sizes == (6,)
    assert (pong.frame_skip, pong.max_episode_steps, pong.protocol) == (4, 27_000, "envpool, Pong-v5")
    assert (cheetah.obs["obs"].shape, cheetah.obs["obs"].dtype) == ((17,), "float32")
    assert (cheetah.actions["action"].shape, cheetah.actions["action"].high) == ((6,), (1.0,) * 6)
    assert (cheetah.frame_skip, cheetah.max_episode_steps, cheetah.reward_threshold) == (5, 1000, 4800.0)
    assert (cartpole.obs["obs"].shape, cartpole.actions["action"].sizes) == ((4,), (2,))
    assert make_spec("envpool/Catch-v0").max_episode_steps is None  # envpool uses 2**31 - 1 for no limit


def test_envpool_settings_reach_the_task_and_are_part_of_the_protocol():
    spec = make_spec("envpool/Pong-v5", {"repeat_action_probability": 0.25, "frame_skip": 2, "stack_num": 1})
    assert (spec.obs["obs"].shape, spec.frame_skip) == ((1, 84, 84), 2)
    assert spec.protocol == "envpool, Pong-v5, frame_skip=2, repeat_action_probability=0.25, stack_num=1"


def test_envpool_group_flattens_nested_observations_and_categories():
    obs = make_spec("envpool/CheetahRun-v1").obs
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in obs.items()} == {
        "obs/position": ((8,), "float32"),
        "obs/velocity": ((9,), "float32"),
    }
    group = group_of("MiniGrid-Empty-5x5-v0")
    assert group.spec.obs["obs/direction"].shape == (4,)
    for step, (native, *_) in play(group, 20):
        np.testing.assert_array_equal(step.obs["obs/direction"].argmax(1), native["direction"])
        np.testing.assert_array_equal(step.obs["obs/image"], native["image"])


@pytest.mark.parametrize("task", TASKS)
def test_envpool_group_repeats_episodes_for_equal_seeds_only(task):
    steps = 40 if "Pong" in task else 120
    one, two, other = (play(group_of(task, seeds=seeds), steps) for seeds in ([5, 6, 7], [5, 6, 7], [6, 8, 5]))
    for (a, _), (b, _) in zip(one, two, strict=True):
        assert all(np.array_equal(a.obs[name], b.obs[name]) for name in a.obs)
        assert np.array_equal(a.reward, b.reward)
        assert a.episodes == b.episodes

    def differ(games_a, a, games_b, b):
        return any(
            not np.array_equal(s.obs[n][a], t.obs[n][b])
            for (s, _), (t, _) in zip(games_a, games_b, strict=True)
            for n in s.obs
        )

    assert differ(one, 0, one, 1)
    assert differ(one, 0, other, 0)


def test_envpool_seed_does_not_depend_on_the_position_in_the_group():
    """Two groups share one seed at different positions, and all environments get the same actions."""
    seen = []
    for seeds, place in (([1, 2], 0), ([3, 4, 1], 2)):
        group = group_of("HalfCheetah-v5", len(seeds), seeds)
        obs = [group.reset()["obs"][place].copy()]
        for row in np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32):
            obs.append(group.step({"action": np.tile(row, (len(seeds), 1))}).obs["obs"][place].copy())
        seen.append(obs)
    np.testing.assert_array_equal(*seen)


@pytest.mark.parametrize(
    ("task", "settings", "clock"),
    [
        ("CartPole-v1", {}, False),
        ("CartPole-v1", {"max_episode_steps": 5}, True),
        ("HalfCheetah-v5", {"max_episode_steps": 25}, True),
        ("CheetahRun-v1", {"max_episode_steps": 25}, True),
        ("LunarLander-v3", {}, False),
        ("Pong-v5", {"max_episode_steps": 25}, True),
    ],
)
def test_envpool_group_has_one_reset_row_after_an_end_and_sums_rewards(task, settings, clock):
    found, games = play(group_of(task, **settings), 110 if clock else 250), 0
    returns, lengths = np.zeros(3), np.zeros(3, int)
    for (step, native), (after, _) in itertools.pairwise(found):
        ended = step.terminated | step.truncated
        np.testing.assert_array_equal(~after.valid, ended)
        np.testing.assert_array_equal(after.first, ended)
        np.testing.assert_array_equal(
            native[4]["elapsed_step"] == 0, ~step.valid
        )  # 0 marks the first row of an episode
        assert not step.reward[~step.valid].any()
        assert not ended[~step.valid].any()
        assert not (step.terminated & step.truncated).any()
        returns += step.reward
        lengths += step.valid
        assert [episode.env for episode in step.episodes] == np.flatnonzero(ended).tolist()
        for env, episodic_return, length in step.episodes:
            assert step.truncated[env] == clock
            assert episodic_return == pytest.approx(returns[env], abs=1e-4)
            assert length == lengths[env]
            assert not clock or length == settings["max_episode_steps"]
            returns[env], lengths[env], games = 0, 0, games + 1
    assert games >= 6


def test_envpool_group_ignores_the_action_of_a_reset_row():
    """Two groups differ only in the actions of reset rows, and their episodes are equal."""
    groups = [group_of("HalfCheetah-v5", max_episode_steps=6) for _ in range(2)]
    for group in groups:
        group.reset()
    resets, valid = 0, np.ones(3, bool)
    for action in actions_of(groups[0], 30):
        other = {"action": action["action"].copy()}
        if not valid.all():
            other["action"][~valid] *= -1
            resets += 1
        one, two = groups[0].step(action), groups[1].step(other)
        np.testing.assert_array_equal(one.obs["obs"], two.obs["obs"])
        valid = ~(one.truncated | one.terminated)
    assert resets == 4


def test_envpool_mujoco_observations_are_float32_and_actions_are_clipped():
    group = group_of("HalfCheetah-v5")
    for step, (native, reward, *_) in play(group, 10):
        assert (native.dtype, step.obs["obs"].dtype, step.reward.dtype) == (np.float64, np.float32, np.float32)
        np.testing.assert_array_equal(step.obs["obs"], native.astype(np.float32))
        np.testing.assert_array_equal(step.reward, reward.astype(np.float32))
    group.step({"action": np.full((3, 6), 7.0, np.float32)})
    np.testing.assert_array_equal(group.env.action, np.ones((3, 6)))
    assert group.env.action.dtype == np.float64


def test_envpool_atari_episode_does_not_end_with_a_lost_life():
    """Breakout: the reported episode contains all five lives."""
    found, lost, games = play(group_of("Breakout-v5", 4), 400), 0, 0
    for (_, earlier), (step, native) in itertools.pairwise(found):
        fewer = native[4]["lives"] < earlier[4]["lives"]
        lost += int(fewer.sum())
        games += len(step.episodes)
        np.testing.assert_array_equal(step.terminated, fewer & (native[4]["lives"] == 0))
        assert step.valid[fewer].all()
    assert games >= 3
    assert lost >= 5 * games


def test_envpool_group_resets_all_environments_after_an_illegal_action():
    group = group_of("Pong-v5", 2)
    play(group, 3)
    resets_after_an_illegal_action(group)
    assert (group.env.last[4]["elapsed_step"] == 1).all()


@pytest.mark.slow  # envpool's constructor once hung in native code, where the timeout has no effect
def test_envpool_vizdoom_combines_buttons_and_close_ends_its_processes(tmp_path, monkeypatch):
    """By default the action is a float per button, non-zero if pressed: a Gaussian policy would press all."""
    monkeypatch.chdir(tmp_path)  # the game writes files to the current folder
    here = psutil.Process()
    threads, children = here.num_threads(), here.children()
    group = group_of("D1Basic-v1", 2)
    assert group.spec.actions["action"].sizes == (6,)  # (forward or not) x (left, right or neither)
    assert "use_combined_action=True" in group.spec.protocol
    games = [child for child in here.children() if child not in children]
    assert len(games) == 2
    group.close()
    gone, _ = psutil.wait_procs(games, timeout=5)
    assert len(gone) == len(games)
    assert here.num_threads() <= threads


def test_envpool_ids_lists_all_tasks():
    assert {"Pong-v5", "HalfCheetah-v5", "CoinrunEasy-v0", "D1Basic-v1"} < set(family.ids())


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("pong-v5", {}, "no task 'pong-v5'; did you mean Pong-v5"),
        ("HalfCheeta-v5", {}, "did you mean HalfCheetah-v5"),
        ("Pong-v5", {"episodic_life": True}, "episodic_life ends the reported game at each lost life"),
        ("Pong-v5", {"reward_clip": True}, "use env.reward-clip"),
        ("Pong-v5", {"frame_skp": 2}, "no such setting 'frame_skp'; did you mean frame_skip"),
        ("Pong-v5", {"batch_size": 1}, "no such setting 'batch_size'"),  # would step only some of the environments
        ("IntersectionMultiAgent-v1", {}, "2 players that act together"),
    ],
)
def test_envpool_family_explains_invalid_arguments(task, settings, message):
    with pytest.raises(EnvError, match=message):
        group_of(task, **settings)


def test_envpool_refused_setting_may_be_false():
    assert group_of("Pong-v5", 1, episodic_life=False, reward_clip=False).num_envs == 1
