"""`sfactory.load_policy`: observations as the environment returns them, actions as it takes them."""

import pickle
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from builders import Nested, Odd, Parts, train_odd, train_own, train_parts, trained

import sfactory
from sfactory.envs import make_group
from sfactory.play.policy import SEED_STREAM

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "cartpole", "classic/cartpole", stop={"env_steps": 5000})


def seeds(count, seed=0):
    """The seeds of the environments of `sfactory eval`."""
    return [int(np.random.SeedSequence([seed, SEED_STREAM, i]).generate_state(1)[0]) >> 1 for i in range(count)]


def test_policy_in_a_gymnasium_loop_plays_the_episode_of_eval(cartpole):
    """One environment, one observation at a time; the same seed, so the same episode."""
    expected = sfactory.evaluate(cartpole, episodes=1, greedy=True)
    policy = sfactory.load_policy(cartpole)
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=seeds(1)[0])
    total, over = 0.0, False
    while not over:
        action = policy.act(obs)
        assert env.action_space.contains(action)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    assert (total,) == expected.returns


@pytest.mark.parametrize("greedy", [True, False])
def test_policy_on_a_batch_plays_the_episodes_of_eval(cartpole, greedy):
    expected = sfactory.evaluate(cartpole, episodes=4, greedy=greedy, seed=3)
    policy = sfactory.load_policy(cartpole, seed=3)
    envs = gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")
    obs, _ = envs.reset(seed=seeds(4, 3)[0])  # the vector environment has one seed
    returns, over, order = np.zeros(4), np.zeros(4, bool), []
    while not over.all():
        obs, reward, terminated, truncated, _ = envs.step(policy.act(obs, greedy=greedy))
        returns += np.where(over, 0, reward)
        order += np.flatnonzero((terminated | truncated) & ~over).tolist()
        over |= terminated | truncated
    assert tuple(returns[order]) == expected.returns


def test_policy_repeats_sampled_actions_for_the_same_seed(cartpole):
    obs = np.zeros((64, 4), np.float32)
    one, same, other = (sfactory.load_policy(cartpole, seed=s).act(obs, greedy=False) for s in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
    policy = sfactory.load_policy(cartpole)
    policy.act(obs, greedy=False)
    policy.reset(seed=1)
    assert policy.act(obs, greedy=False).tolist() == one.tolist()


def test_policy_refuses_words_for_switches_and_seeds_that_are_none(cartpole):
    """A text is true in Python: greedy="no" would be greedy."""
    policy, obs = sfactory.load_policy(cartpole), np.zeros(4, np.float32)
    for call, name in (
        (lambda: policy.act(obs, greedy="no"), "greedy"),
        (lambda: policy.predict(obs, deterministic="no"), "deterministic"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected True or False, got 'no'"):
            call()
    assert policy.act(obs, greedy=np.bool_(True)) == policy.act(obs)
    for seed, message in (
        (-1, "seed must be >= 0, got -1"),
        ("a", "seed: 'a' is not a whole number"),
        (1.5, "seed: 1"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.reset(seed=seed)
    policy.reset(seed=np.int64(3))


def test_policy_says_which_observation_is_no_array(cartpole):
    with pytest.raises(ValueError, match=r"obs cannot be read as an array: .*requires grad"):
        sfactory.load_policy(cartpole).act(torch.zeros(4, requires_grad=True))


@pytest.mark.parametrize("squash", [False, True])
def test_policy_bounds_continuous_actions_like_eval(tmp_path, squash):
    run = trained(tmp_path / "run", "classic/pendulum", model={"squash": squash, "log_std_init": 1.5})
    policy = sfactory.load_policy(run)
    obs = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    actions = policy.act(obs, greedy=False)
    assert actions.shape == (256, 1)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 2.0
    at_bound = float((np.abs(actions) == 2.0).mean())
    assert at_bound < 0.1 if squash else at_bound > 0.4  # a standard deviation of 4.5: clipping collects actions there
    assert policy.action_space.contains(policy.act(obs[0]))
    env, expected = gymnasium.make("Pendulum-v1"), sfactory.evaluate(run, episodes=1, greedy=True)
    obs, _ = env.reset(seed=seeds(1)[0])
    total = 0.0
    for _ in range(200):
        obs, reward, *_ = env.step(policy.act(obs))
        total += np.float32(reward)
    assert total == pytest.approx(expected.returns[0], abs=1e-3)


def test_policy_keeps_recurrent_state_until_first_or_reset(tmp_path):
    run = trained(tmp_path / "run", "memory/tmaze", model={"core": "gru", "core_size": 8})
    policy = sfactory.load_policy(run)
    state = lambda: policy._actor.state.numpy().copy()  # noqa: E731
    cue, corridor = np.array([1, 0, 1], np.float32), np.array([0, 0, 1], np.float32)
    policy.act(cue)
    one = state()
    policy.act(corridor)
    assert not np.allclose(state(), one)
    policy.act(cue, first=True)
    np.testing.assert_array_equal(state(), one)
    policy.act(corridor)
    policy.reset()
    policy.act(cue)
    np.testing.assert_array_equal(state(), one)
    policy.act(np.stack([cue, cue]))  # two environments: each has a state of its own
    np.testing.assert_allclose(state(), np.repeat(one, 2, 0), atol=1e-6)
    policy.act(np.stack([corridor, cue]), first=[False, True])
    assert not np.allclose(state()[0], one[0])
    np.testing.assert_allclose(state()[1], one[0], atol=1e-6)


@pytest.fixture
def nested(tmp_path):
    return train_own(tmp_path / "run", Nested)


def test_policy_refuses_a_batch_of_no_observations(nested, cartpole):
    empty = {name: np.zeros((0, *space.shape), space.dtype) for name, space in Nested().observation_space.items()}
    for run, obs in ((nested, empty), (cartpole, np.zeros((0, 4), np.float32))):
        with pytest.raises(ValueError, match=r"has shape \(0, .*\): a batch of no observations"):
            sfactory.load_policy(run).act(obs)


def test_policy_handles_dict_spaces(nested):
    policy = sfactory.load_policy(nested)
    env = Nested()
    obs, _ = env.reset(seed=1)
    action = policy.act(obs)
    for wrong in ({"go": action["go"]}, np.zeros(3)):
        with pytest.raises(ValueError, match=r"no action/\w+ in the action; expected Dict\("):
            policy.distribution(obs).log_prob(wrong)
    assert env.action_space.contains(action)
    assert 5 <= action["go"] <= 7
    some = [env.observation_space.sample() for _ in range(9)]
    batch = {key: np.stack([one[key] for one in some]) for key in some[0]}
    actions = policy.act(batch)
    assert (actions["go"].shape, actions["push"].shape) == ((9,), (9, 2))
    for i, one in enumerate(some):
        alone = policy.act(one)
        assert alone["go"] == actions["go"][i]
        np.testing.assert_allclose(alone["push"], actions["push"][i], atol=1e-6)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return train_parts(tmp_path_factory.mktemp("runs") / "parts")


def tuple_of_batches(*observations):
    """Observations of `Parts` as a vector environment of gymnasium returns them."""
    first, second, third, text = zip(*observations, strict=True)
    return np.stack(first), np.stack(second), {key: np.stack([one[key] for one in third]) for key in third[0]}, text


def test_policy_reads_a_tuple_space_as_a_tuple_of_batches_and_refuses_everything_else(parts):
    policy, space = sfactory.load_policy(parts), Parts().observation_space
    space.seed(1)
    one, other = space.sample(), space.sample()
    values = [policy.value(one), policy.value(other)]
    np.testing.assert_allclose(policy.value(tuple_of_batches(one, other)), values, atol=1e-6)
    assert policy.value(list(one)) == values[0]  # a list of the parts
    transposed = "obs has a Tuple space: give one observation, or for N of them a tuple of 4 batches of N rows"
    batches = tuple_of_batches(one, other)
    for wrong, message in (
        ([one], transposed),
        ([one, other], transposed),
        ((one, other), transposed),
        ([one, other, one, other], transposed),
        ((one[:2], other[:2], *batches[2:]), transposed),
        (list(batches), transposed),
        ((*one, one[0]), "obs has 5 parts, but its space has 4"),
        ((np.zeros(5, np.float32),), r"obs/0 has shape \(5,\)"),
        ((one, {}), r"the observation is a tuple whose second part is a dict; env\.reset\(\) returns"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.value(wrong)


def test_policy_takes_a_category_in_an_array_of_one_as_training_does(parts, nested):
    policy = sfactory.load_policy(parts)
    first, second, third, text = Parts().observation_space.sample()
    alone = policy.act((first, second, third, text))
    in_array = {**third, "which": np.array([third["which"]]), "x": float(third["x"][0])}  # and a number for an array
    assert policy.act((first, second, in_array, text)).tolist() == alone.tolist()
    obs = Nested().observation_space.sample()
    with pytest.raises(ValueError, match="the leaves of the observation have different batch sizes"):
        sfactory.load_policy(nested).act({**obs, "vector": obs["vector"][None]})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image", np.full((6, 6, 2), 300, np.uint16), "obs/image is 300, but its space has uint8, which ends at 255"),
        ("vector", np.full(3, 1e39), "obs/vector is 1e[+]39, which is too large for float32"),
    ],
)
def test_policy_refuses_numbers_that_do_not_fit(nested, key, value, message):
    obs = {**Nested().observation_space.sample(), key: value}
    with pytest.raises(ValueError, match=message):
        sfactory.load_policy(nested).act(obs)


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros(5, np.float32), r"obs has shape \(5,\); gymnasium/CartPole-v1 has \(4,\), or \(N, ...\) for a batch"),
        (np.zeros((2, 3, 4), np.float32), "has shape"),
        (np.array(["a"] * 4), "obs has dtype <U1; float32 is expected"),
        ((np.zeros(4, np.float32), {}), r"second part is a dict; env\.reset\(\) returns \(obs, info\)"),
        ([[0.0, np.nan, 0.0, np.inf]], "obs is not finite: 2 of 4 numbers"),
    ],
)
def test_policy_rejects_observations_of_another_shape_or_dtype(cartpole, obs, message):
    policy = sfactory.load_policy(cartpole)
    for method in (policy.act, policy.value, policy.predict, policy.distribution):
        with pytest.raises(ValueError, match=message):
            method(obs)


@pytest.mark.parametrize("first", ["yes", [True, False, True], None])
def test_policy_rejects_flags_that_are_no_bool_for_each_observation(cartpole, first):
    policy, obs = sfactory.load_policy(cartpole), np.zeros((2, 4), np.float32)
    if first is None:
        assert policy.act(obs, first=first).shape == (2,)
    else:
        with pytest.raises(ValueError, match=r"first \(episode_start\): expected a bool or 2 of them"):
            policy.act(obs, first=first)


def test_policy_of_a_family_without_spaces_takes_the_arrays_of_its_group(tmp_path):
    run = trained(tmp_path / "run", "minatar/breakout")
    group = make_group("minatar/breakout", 3, [1, 2, 3])
    obs = group.reset()
    policy = sfactory.load_policy(run)
    actions = policy.act(obs["obs"])
    assert actions.shape == (3,)
    assert policy.act(obs["obs"][0]) == actions[0]
    group.step({"action": actions})
    group.close()


def test_load_policy_accepts_a_checkpoint_folder_and_moves_nothing(cartpole):
    path = max((cartpole / "checkpoints").iterdir())
    before = sorted(p.name for p in cartpole.rglob("*"))
    assert sfactory.load_policy(path).env_steps == int(path.name) == sfactory.load_policy(str(cartpole)).env_steps
    assert sorted(p.name for p in cartpole.rglob("*")) == before
    with pytest.raises(ValueError, match="holds no run"):
        sfactory.load_policy(cartpole / "tb")
    with pytest.raises(ValueError, match="does not exist"):
        sfactory.load_policy(cartpole / "typing-eror")
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        sfactory.load_policy(cartpole, seed=-1)


def test_import_sfactory_loads_no_heavy_package():
    code = "import sys, sfactory; dir(sfactory); print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    for heavy in ("torch", "numpy", "gymnasium", "tyro"):
        assert f"'{heavy}'" not in loaded


def test_package_exports_its_public_names_only():
    assert all(getattr(sfactory, name) is not None for name in sfactory.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        sfactory.trian  # noqa: B018
    assert Path(sfactory.__file__).name == "__init__.py"


def test_policy_takes_observations_with_and_without_dropped_leaves(tmp_path):
    policy = sfactory.load_policy(train_odd(tmp_path / "run"))
    assert list(policy.spec.obs) == ["obs/x"]
    obs = Odd.observation_space.sample()
    action = policy.act(obs)
    for other in ({"x": obs["x"]}, {**obs, "mission": "anything", "more": 3}):
        np.testing.assert_equal(policy.act(other), action)


def test_policy_returns_actions_of_the_shape_and_dtype_of_their_spaces(tmp_path):
    policy = sfactory.load_policy(train_odd(tmp_path / "run"))
    some = [Odd.observation_space.sample()["x"] for _ in range(4)]
    batch = policy.act({"x": np.stack(some)}, greedy=False)
    for key, space in Odd.action_space.items():
        assert (batch[key].shape, batch[key].dtype) == ((4, *space.shape), space.dtype)
    for greedy in (True, False):
        assert Odd.action_space.contains(policy.act({"x": some[0]}, greedy=greedy))
    single = policy.act({"x": some[0]})
    assert {key: type(value) for key, value in single.items()} == dict.fromkeys(Odd.action_space, np.ndarray)


@pytest.fixture(scope="module")
def tmaze(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "tmaze", "memory/tmaze", model={"core": "gru", "core_size": 8})


def test_policy_predict_is_act_with_the_state_as_an_argument(tmaze):
    policy, other = sfactory.load_policy(tmaze), sfactory.load_policy(tmaze)
    obs = np.array([[1, 0, 1], [0, 1, 1]], np.float32)
    state = None
    for step in range(3):
        first = [step == 0, step != 1]
        action, state = other.predict(obs, state, first, deterministic=True)
        assert action.tolist() == policy.act(obs, first).tolist()
        np.testing.assert_array_equal(state, policy._actor.state.numpy())
    assert other._actor.state is None, "predict keeps no state"
    assert state.shape == (2, 8)
    sampled = {int(other.predict(obs[0])[0]) for _ in range(60)}
    assert len(sampled) > 1, "sampled unless deterministic"


@pytest.mark.parametrize(
    ("state", "got"),
    [
        (np.zeros((2, 7)), r"shape \(2, 7\)"),
        (np.zeros((3, 8)), r"shape \(3, 8\)"),
        ((np.zeros((1, 2, 8)), np.zeros((1, 2, 8))), r"shape \(2, 1, 2, 8\)"),  # of another program: (h, c)
        ("zeros", "'zeros'"),
    ],
)
def test_policy_predict_says_which_state_it_expects(tmaze, state, got):
    policy = sfactory.load_policy(tmaze)
    with pytest.raises(ValueError, match=rf"state: expected an array of shape \(2, 8\), as predict .* got {got}"):
        policy.predict(np.zeros((2, 3), np.float32), state)
    with pytest.raises(ValueError, match="state is not finite"):
        policy.predict(np.zeros((2, 3), np.float32), np.full((2, 8), np.nan))
    one = policy.predict(np.zeros(3, np.float32), np.zeros(8), deterministic=True)
    np.testing.assert_array_equal(one[1], policy.predict(np.zeros(3, np.float32), deterministic=True)[1])


def test_policy_predict_returns_no_state_without_memory(cartpole):
    action, state = sfactory.load_policy(cartpole).predict(np.zeros(4, np.float32))
    assert state is None
    assert action in (0, 1)


def test_policy_is_pickled_with_its_state_and_its_noise(tmaze):
    policy, obs = sfactory.load_policy(tmaze, seed=3), np.array([[1, 0, 1], [0, 1, 1]], np.float32)
    policy.act(obs, greedy=False)
    copied = pickle.loads(pickle.dumps(policy))
    assert repr(copied) == repr(policy)
    for _ in range(20):
        assert copied.act(obs, greedy=False).tolist() == policy.act(obs, greedy=False).tolist()
    np.testing.assert_array_equal(copied.value(obs), policy.value(obs))


def test_policy_value_and_distribution_read_the_state_of_act_and_keep_it(tmaze):
    policy, (cue, corridor) = sfactory.load_policy(tmaze), np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    before = policy.value(corridor)
    policy.act(cue)
    state = policy._actor.state.numpy().copy()
    after, probs = policy.value(corridor), policy.distribution(corridor).probs
    np.testing.assert_array_equal(policy._actor.state.numpy(), state)
    assert after != before
    assert policy.value(corridor, first=True) == before
    assert policy.act(corridor) == probs.argmax()


def test_policy_distribution_of_choices(cartpole):
    policy = sfactory.load_policy(cartpole)
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = policy.distribution(obs)
    assert found.probs.shape == (5, 2)
    np.testing.assert_allclose(found.probs.sum(-1), 1.0, rtol=1e-6)
    assert policy.act(obs).tolist() == found.probs.argmax(-1).tolist()
    np.testing.assert_allclose(
        found.log_prob(np.array([0, 1, 0, 1, 1])), np.log(found.probs[range(5), [0, 1, 0, 1, 1]]), atol=1e-6
    )
    np.testing.assert_allclose(found.entropy, -(found.probs * np.log(found.probs)).sum(-1), atol=1e-6)
    assert found.mean is found.std is None
    one = policy.distribution(obs[0])
    np.testing.assert_allclose(one.probs, found.probs[0], rtol=1e-6)
    assert isinstance(one.entropy, float)
    assert one.log_prob(1) == pytest.approx(np.log(one.probs[1]), abs=1e-6)
    draws = np.array([policy.act(obs[0], greedy=False) for _ in range(400)])
    assert draws.mean() == pytest.approx(one.probs[1], abs=0.1)
    with pytest.raises(ValueError, match="is not one of the choices"):
        one.log_prob(2)
    for fraction in (0.5, [0.5], np.nan, None):
        with pytest.raises(ValueError, match="is not one of the choices"):
            one.log_prob(fraction)
    for wrong in ([0, 1], "left"):
        with pytest.raises(ValueError, match=r"action: expected numbers of shape \(\), got"):
            one.log_prob(wrong)
    assert "probs=[" in repr(one)


@pytest.mark.parametrize("squash", [False, True])
def test_policy_distribution_of_numbers_is_the_density_of_samples(tmp_path, squash):
    run = trained(tmp_path / "run", "gymnasium/Pendulum-v1", model={"squash": squash, "log_std_init": -1.0})
    policy = sfactory.load_policy(run)
    obs = np.array([1.0, 0.0, 0.3], np.float32)
    found = policy.distribution(obs)
    assert found.probs is None
    assert found.mean.shape == found.std.shape == (1,)
    grid = np.linspace(-1.999, 1.999, 4001, dtype=np.float32)[:, None]  # the torque is within +-2
    density = np.exp(policy.distribution(np.repeat(obs[None], 4001, 0)).log_prob(grid))
    mass = density.sum() * (grid[1, 0] - grid[0, 0])
    assert mass == pytest.approx(1.0, abs=0.01)
    draws = np.array([policy.act(obs, greedy=False)[0] for _ in range(400)])
    assert draws.mean() == pytest.approx((density * grid[:, 0]).sum() / density.sum(), abs=0.15)


@pytest.mark.parametrize("value_head", ["scalar", "hl_gauss"])
def test_policy_value_is_in_units_of_reward_where_targets_were_normalized(tmp_path, value_head):
    run = trained(
        tmp_path / "run", "classic/cartpole", normalize={"value_targets": True}, stop={"env_steps": 5000},
        model={"value_head": value_head},
    )  # fmt: skip
    policy = sfactory.load_policy(run)
    obs = np.zeros((3, 4), np.float32)
    values = policy.value(obs)
    assert (values > 3.0).all(), "the network itself computes numbers about 0"
    output = policy._outputs(*policy._inputs(obs, None, None, None)[:2], None).value.numpy()
    assert np.abs(output).max() < 3.0
    policy.rescale_value_head()
    np.testing.assert_allclose(policy.value(obs), values, rtol=1e-4)
    assert isinstance(policy.value(obs[0]), float)


def test_policy_repr_says_what_it_reads_and_where_it_is_from(cartpole):
    text = repr(sfactory.load_policy(cartpole))
    assert text.startswith("<Policy of gymnasium/CartPole-v1 after 5,")
    assert "obs (4,) float32 -> Discrete(2); " in text
    assert str(cartpole) in text
