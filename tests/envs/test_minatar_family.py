"""MinAtar family: equal to the package frame by frame, with next-step autoreset."""

import minatar
import numpy as np
import pytest

from sfactory.envs import EnvError, make_group

GAMES = ["asterix", "breakout", "freeway", "seaquest", "space_invaders"]


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("settings", [{}, {"minimal_actions": True, "difficulty_ramping": False}])
def test_minatar_group_equals_the_package_in_every_frame(game, settings):
    """Compare three games with `minatar.Environment` for equal seeds and actions: obs, reward, terminal, resets."""
    seeds, steps = [3, 14, 159], 2600 if game == "freeway" else 1200
    group = make_group(f"minatar/{game}", 3, seeds, settings)
    stock = [minatar.Environment(game, difficulty_ramping=settings.get("difficulty_ramping", True)) for _ in seeds]
    for env, seed in zip(stock, seeds, strict=True):
        env.seed(seed)
        env.reset()
    actions = stock[0].minimal_action_set() if settings else list(range(6))
    assert group.spec.actions["action"].sizes == (len(actions),)
    obs = group.reset()["obs"]
    over, returns, episodes, lengths = [False] * 3, [0.0] * 3, [], [0] * 3
    expected = []
    choices = np.random.default_rng(0).integers(0, len(actions), (steps, 3))
    for choice in choices:
        for row, env in enumerate(stock):
            np.testing.assert_array_equal(obs[row], env.state())
        step = group.step({"action": choice})
        obs = step.obs["obs"]
        for row, env in enumerate(stock):
            assert step.valid[row] == (not over[row])
            if over[row]:
                env.reset()
                assert step.reward[row] == 0
                over[row] = False
                continue
            reward, over[row] = env.act(actions[choice[row]])
            assert step.reward[row] == reward
            returns[row], lengths[row] = returns[row] + reward, lengths[row] + 1
            assert (step.terminated[row] or step.truncated[row]) == over[row]
            if over[row]:
                expected.append((row, returns[row], lengths[row]))
                returns[row], lengths[row] = 0.0, 0
        episodes += [tuple(episode) for episode in step.episodes]
    assert episodes == expected
    assert len(episodes) >= 3


def run(seeds, steps=300, **settings):
    group = make_group("minatar/asterix", len(seeds), seeds, settings)
    actions = np.random.default_rng(1).integers(0, 6, (steps, len(seeds)))
    frames = [group.reset()["obs"].copy()]
    return np.array(frames + [group.step({"action": row}).obs["obs"].copy() for row in actions])


def test_minatar_group_repeats_frames_for_equal_seeds_only():
    first = run([5, 6])
    np.testing.assert_array_equal(first, run([5, 6]))
    assert (first != run([5, 7])).any()
    assert (first[:, 0] != first[:, 1]).any()


def test_minatar_freeway_truncates_and_breakout_terminates():
    group = make_group("minatar/freeway", 1, [0])
    group.reset()
    for _ in range(2500):
        step = group.step({"action": np.array([2])})
        assert not step.truncated[0]
    step = group.step({"action": np.array([2])})
    assert step.truncated[0]
    assert not step.terminated[0]
    assert step.episodes[0].length == 2501
    group = make_group("minatar/breakout", 1, [0])
    group.reset()
    while not (step := group.step({"action": np.array([0])})).terminated[0]:
        assert step.valid[0]
    assert not step.truncated[0]


def test_minatar_max_episode_steps_truncates_and_counts_from_zero_again():
    group = make_group("minatar/space_invaders", 2, [0, 1], {"max_episode_steps": 7})
    group.reset()
    steps = [group.step({"action": np.zeros(2, int)}) for _ in range(16)]
    assert [t for t, step in enumerate(steps) if step.truncated.all()] == [6, 14]
    assert [t for t, step in enumerate(steps) if not step.valid.any()] == [7, 15]
    assert {episode.length for step in steps for episode in step.episodes} == {7}
    assert group.spec.max_episode_steps == 7


def test_minatar_game_that_ends_at_max_episode_steps_is_terminated():
    def first_end(cap):
        group = make_group("minatar/breakout", 1, [0], {"max_episode_steps": cap})
        group.reset()
        while not (step := group.step({"action": np.array([0])})).episodes:
            pass
        return step

    length = first_end(None).episodes[0].length
    at, before = first_end(length), first_end(length - 1)
    assert (at.terminated[0], at.truncated[0]) == (True, False)
    assert (before.terminated[0], before.truncated[0]) == (False, True)


def test_minatar_reset_in_the_middle_of_a_game_starts_a_new_one():
    group = make_group("minatar/breakout", 1, [0])
    start = group.reset()["obs"].copy()
    group.step({"action": np.array([0])})
    assert (group.obs["obs"] != start).any()
    again = group.reset()["obs"]
    assert again[0, 3, :, 1].any()
    assert again[0, :, :, 3].sum() == 30


def test_minatar_last_observation_of_a_game_is_the_final_one():
    group = make_group("minatar/breakout", 1, [0], {"sticky_action_prob": 0.0})
    group.reset()
    while not (step := group.step({"action": np.array([0])})).terminated[0]:
        pass
    assert step.obs["obs"][0, 9, :, 1].any()  # the ball is in the bottom row
    step = group.step({"action": np.array([0])})
    assert step.obs["obs"][0, 3, :, 1].any()  # a new ball
    assert step.first[0]


@pytest.mark.parametrize("action", [6, -1, np.nan])
def test_minatar_group_reports_an_illegal_action_as_a_fault(action):
    group = make_group("minatar/breakout", 2, [0, 1])
    group.reset()
    step = group.step({"action": np.array([action, 0])})
    assert step.valid.tolist() == [False, True]
    assert step.first.tolist() == [True, False]
    assert "illegal action" in step.faults[0].message.splitlines()[0]


@pytest.mark.parametrize("method", ["_act", "_state"])
def test_minatar_group_replaces_only_the_game_that_raises(method):
    def broken(*args):
        raise IndexError("out of the screen")

    group = make_group("minatar/seaquest", 3, [0, 1, 2])
    group.reset()
    getattr(group, method)[1] = broken
    step = group.step({"action": np.zeros(3, int)})
    assert [(f.env, "out of the screen" in f.message) for f in step.faults] == [(1, True)]
    assert step.valid.tolist() == [True, False, True]
    assert not (step.terminated | step.truncated).any()
    after = group.step({"action": np.zeros(3, int)})
    assert not after.faults
    assert after.valid.all()


def test_minatar_protocol_differs_between_incomparable_settings():
    variants = [{}, {"minimal_actions": True}, {"sticky_action_prob": 0.0}, {"difficulty_ramping": False}]
    protocols = {make_group("minatar/asterix", 1, [0], settings).spec.protocol for settings in variants}
    assert len(protocols) == 4
    with pytest.raises(EnvError):
        make_group("minatar/asterix", 1, [0], {"sticky": 0.5})
