"""Gymnasium family: values, time limits, vector environments."""

import gymnasium
import numpy as np
import pytest

from sfactory.envs import EnvError, make_group, make_spec


def actions_of(spec, steps, num_envs):
    (leaf,) = spec.actions.values()
    rng = np.random.default_rng(0)
    if leaf.kind == "discrete":
        return rng.integers(0, leaf.sizes[0], (steps, num_envs))
    return rng.normal(0, 3, (steps, num_envs, *leaf.shape)).astype(np.float32)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
def test_gymnasium_group_equals_the_vector_environment_of_gymnasium(env_id):
    """Compare with gymnasium's next-step autoreset: equal observations, rewards and ends in each step."""
    steps, seeds = 250, [11, 12, 13]
    group = make_group(f"gymnasium/{env_id}", 3, seeds, exact=True)  # single environments, also of CartPole
    stock = gymnasium.make_vec(env_id, 3, vectorization_mode="sync")
    expected, _ = stock.reset(seed=seeds)
    np.testing.assert_array_equal(group.reset()["obs"], expected)
    over = np.zeros(3, bool)
    for action in actions_of(group.spec, steps, 3):
        clipped = action if action.dtype.kind == "i" else np.clip(action, -2, 2)
        expected, reward, terminated, truncated, _ = stock.step(clipped)
        step = group.step({"action": action})
        np.testing.assert_array_equal(step.obs["obs"], expected)
        np.testing.assert_array_equal(step.reward, reward.astype(np.float32))
        np.testing.assert_array_equal(step.terminated, terminated)
        np.testing.assert_array_equal(step.truncated, truncated)
        np.testing.assert_array_equal(step.valid, ~over)
        over = terminated | truncated
    group.close()
    stock.close()


def test_gymnasium_pendulum_never_terminates_and_is_truncated_at_its_limit():
    group = make_group("gymnasium/Pendulum-v1", 2, [0, 1])
    group.reset()
    for _ in range(199):
        step = group.step({"action": np.zeros((2, 1), np.float32)})
        assert not (step.terminated | step.truncated).any()
    step = group.step({"action": np.zeros((2, 1), np.float32)})
    assert step.truncated.all()
    assert not step.terminated.any()
    assert [episode.length for episode in step.episodes] == [200, 200]


def test_gymnasium_spec_has_limit_threshold_and_bounds():
    cartpole, pendulum = make_spec("gymnasium/CartPole-v1"), make_spec("gymnasium/Pendulum-v1")
    assert (cartpole.max_episode_steps, cartpole.reward_threshold) == (500, 475.0)
    assert cartpole.obs["obs"].shape == (4,)
    assert pendulum.actions["action"].high == (2.0,)
    assert make_spec("gymnasium/CartPole-v1", {"max_episode_steps": 9}).max_episode_steps == 9


def test_gymnasium_settings_reach_the_environment():
    group = make_group("gymnasium/Pendulum-v1", 1, [0], {"g": 1.5, "max_episode_steps": 2})
    assert group.envs[0].unwrapped.g == 1.5
    assert group.spec.protocol == "Pendulum-v1, g=1.5, max_episode_steps=2"
    group.reset()
    group.step({"action": np.zeros((1, 1), np.float32)})
    assert group.step({"action": np.zeros((1, 1), np.float32)}).truncated[0]


def test_gymnasium_group_encodes_categories_as_one_hot_vectors():
    group = make_group("gymnasium/FrozenLake-v1", 1, [0], {"is_slippery": False})
    assert group.spec.obs["obs"].shape == (16,)
    assert np.flatnonzero(group.reset()["obs"][0]).tolist() == [0]
    assert np.flatnonzero(group.step({"action": np.array([1])}).obs["obs"][0]).tolist() == [4]


def test_gymnasium_family_uses_the_vector_environment_of_an_id():
    """From the same states, single CartPoles have the same observations until they terminate."""
    group = make_group("gymnasium/CartPole-v1", 8, list(range(8)))
    assert type(group).__name__ == "GymnasiumVectorGroup"
    assert type(make_group("gymnasium/CartPole-v1", 8, list(range(8)), exact=True)).__name__ == "EnvGroup"
    assert group.spec == make_spec("gymnasium/CartPole-v1")
    singles = [gymnasium.make("CartPole-v1") for _ in range(8)]
    group.reset()
    for env, state in zip(singles, group.env.state.T, strict=True):
        env.reset()
        env.unwrapped.state = tuple(state)
    alive, over, returns, games = np.ones(8, bool), np.zeros(8, bool), np.zeros(8), 0
    for action in actions_of(group.spec, 300, 8):
        step = group.step({"action": action})
        np.testing.assert_array_equal(step.valid, ~over)
        np.testing.assert_array_equal(step.first, over)
        assert not step.reward[over].any()
        for i in np.flatnonzero(alive):
            obs, _, ended, _, _ = singles[i].step(int(action[i]))
            np.testing.assert_allclose(step.obs["obs"][i], obs, rtol=1e-5, atol=1e-6)
            assert step.terminated[i] == ended
            alive[i] = not ended
        returns += step.reward
        for episode in step.episodes:
            assert episode.episodic_return == returns[episode.env]
            returns[episode.env] = 0.0
            games += 1
        over = step.terminated | step.truncated
    assert games > 30
    assert not alive.any()


def test_gymnasium_vector_group_repeats_episodes_for_equal_seeds():
    def play(first):
        group = make_group("gymnasium/CartPole-v1", 8, list(range(first, first + 8)))
        seen = [group.reset()["obs"].copy()]
        seen += [group.step({"action": a}).obs["obs"].copy() for a in actions_of(group.spec, 100, 8)]
        return np.stack(seen)

    assert np.array_equal(play(0), play(0))
    assert not np.array_equal(play(0), play(8))


def test_gymnasium_vector_group_is_truncated_at_its_limit():
    group = make_group("gymnasium/CartPole-v1", 8, list(range(8)), {"max_episode_steps": 5})
    group.reset()
    for _ in range(4):
        assert not group.step({"action": np.zeros(8, np.int64)}).truncated.any()
    step = group.step({"action": np.ones(8, np.int64)})
    assert step.truncated.all()
    assert not step.terminated.any()


def test_gymnasium_family_skips_a_vector_environment_with_another_autoreset():
    """An id whose vector environment resets within the step uses single environments."""
    from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
    from gymnasium.vector import AutoresetMode

    class SameStep(CartPoleVectorEnv):
        metadata = {**CartPoleVectorEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    gymnasium.register(
        "SameStep-v0", "gymnasium.envs.classic_control:CartPoleEnv", vector_entry_point=SameStep, max_episode_steps=500
    )
    try:
        assert type(make_group("gymnasium/SameStep-v0", 8, list(range(8)))).__name__ == "EnvGroup"
    finally:
        del gymnasium.registry["SameStep-v0"]


def test_gymnasium_cartpole_without_a_limit_runs_until_it_terminates():
    """gymnasium uses -1 for no limit; its vector environment would truncate every step."""
    group = make_group("gymnasium/CartPole-v1", 8, list(range(8)), {"max_episode_steps": -1})
    group.reset()
    step = group.step({"action": np.zeros(8, np.int64)})
    assert not (step.terminated | step.truncated).any()


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "BreakoutNoFrameskip-v4", "PongDeterministic-v4"])
def test_an_atari_id_that_is_not_registered_names_the_family_and_the_module(monkeypatch, env_id):
    for name in [name for name in gymnasium.registry if name == env_id]:  # ale-py may be loaded by another test
        monkeypatch.delitem(gymnasium.registry, name)
    with pytest.raises(EnvError) as caught:
        make_group(f"gymnasium/{env_id}", 1, [0])
    hint = f"; Atari games are atari/ID, see `sfactory envs atari`, or gymnasium/ale_py:{env_id}"
    assert str(caught.value) == f"gymnasium knows no environment {env_id!r}{hint}"
