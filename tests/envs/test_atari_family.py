"""Atari family with the real ale-py: autoreset, both protocols, seeds, complete games."""

import itertools

import numpy as np
import pytest
from native import resets_after_an_illegal_action

from sfactory.envs import EnvError, make_group


def group_of(game, num_envs=4, seeds=None, **settings):
    return make_group(f"atari/{game}", num_envs, seeds or list(range(5, 5 + num_envs)), settings)


def play(group, steps, seed=0):
    draws, found = np.random.default_rng(seed), []
    n = group.spec.actions["action"].sizes[0]
    obs = {name: array.copy() for name, array in group.reset().items()}
    for _ in range(steps):
        step = group.step({"action": draws.integers(0, n, group.num_envs)})
        found.append((obs["obs"], step))
        obs = {name: array.copy() for name, array in step.obs.items()}
    return found


def test_atari_scores_has_the_57_games_of_the_benchmark():
    from ale_py import roms
    from sfactory_envs.atari_scores import SCORES

    from sfactory.monitor.statistics import human_normalized

    assert len(SCORES) == 57
    assert set(SCORES) <= set(roms.get_all_rom_ids())
    assert group_of("pong", 1).spec.reference == (-20.7, 14.6)
    assert group_of("adventure", 1).spec.reference is None
    with pytest.raises(EnvError, match="ships no game 'combat'"):  # loading it would end the process
        group_of("combat")
    assert human_normalized(30.5, SCORES["breakout"]) == 1.0


def test_atari_spec_describes_the_game():
    spec = group_of("pong", 1).spec
    assert (spec.obs["obs"].shape, spec.obs["obs"].dtype) == ((4, 84, 84), "uint8")
    assert spec.actions["action"].sizes == (6,)
    assert (spec.frame_skip, spec.max_episode_steps) == (4, 27_000)
    assert "atari dqn" in spec.protocol
    other = group_of("pong", 1, protocol="machado").spec.protocol
    assert "machado" in other
    assert "sticky 0.25" in other
    assert group_of("breakout", 1, full_action_space=True).spec.actions["action"].sizes == (18,)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("protocol", ["dqn", "machado"])
def test_atari_group_repeats_episodes_for_equal_seeds_only(protocol):
    one, two = (play(group_of("breakout", 2, protocol=protocol), 150) for _ in range(2))
    assert any(step.episodes or step.terminated.any() for _, step in one)
    for (obs_a, a), (obs_b, b) in zip(one, two, strict=True):
        assert np.array_equal(obs_a, obs_b)
        assert np.array_equal(a.reward, b.reward)
        assert a.episodes == b.episodes
    other = play(group_of("breakout", 2, [90, 91], protocol=protocol), 150)
    assert any(not np.array_equal(a[0], b[0]) for a, b in zip(one, other, strict=True))


def test_atari_dqn_lost_life_ends_the_episode_and_not_the_game():
    """Breakout with random actions: five terminations per game, only the last is followed by a reset row."""
    group, deaths, games = group_of("breakout"), np.zeros(4, int), 0
    steps = [step for _, step in play(group, 400)]
    rewards = np.zeros(4)
    for step in steps:
        rewards += step.reward
        deaths += step.terminated
        assert not step.reward[~step.valid].any()
        assert step.first[~step.valid].all()
        for episode in step.episodes:
            games += 1
            assert deaths[episode.env] == 5  # one termination per life
            assert not step.valid[episode.env]  # reported in the reset row
            assert episode.episodic_return == rewards[episode.env]
            deaths[episode.env] = rewards[episode.env] = 0
    assert games >= 3
    lost = sum(int((step.first & step.valid).sum()) for step in steps)
    assert lost >= 4 * games  # the next row is an ordinary one that begins an episode


def test_atari_machado_episode_ends_with_the_game_and_resets_in_the_next_row():
    steps = [step for _, step in play(group_of("breakout", protocol="machado"), 500)]
    ends = 0
    for now, after in itertools.pairwise(steps):
        assert np.array_equal(now.terminated | now.truncated, ~after.valid)
        assert len(now.episodes) == now.terminated.sum()
        ends += int(now.terminated.sum())
    assert ends >= 3


def test_atari_time_limit_is_a_truncation():
    group_of("pong", 1).env.close()
    from sfactory_envs import atari

    original, atari.FRAMES = atari.FRAMES, 400
    try:
        steps = [step for _, step in play(group_of("pong"), 130)]
    finally:
        atari.FRAMES = original
    assert sum(step.truncated.sum() for step in steps) == 4
    assert not any(step.terminated.any() for step in steps)
    assert sum(len(step.episodes) for step in steps) == 4


def test_atari_group_resets_all_environments_after_an_illegal_action():
    group = group_of("pong", 2)
    play(group, 3)
    resets_after_an_illegal_action(group)


@pytest.mark.parametrize(
    ("game", "settings", "message"),
    [
        ("pog", {}, "did you mean pong"),
        ("pong", {"protocol": "dq"}, "dqn or machado"),
        ("pong", {"no_such": 1}, "no_such"),
    ],
)
def test_atari_family_explains_invalid_arguments(game, settings, message):
    with pytest.raises(EnvError, match=message):
        group_of(game, **settings)
