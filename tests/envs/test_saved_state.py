"""Snapshots: a group that restores the state of another one continues bit for bit like it."""

import json

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfactory.envs import EnvError, make_group
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.envs.saved_state import SnapshotError, decode, encode

EXACT = [
    *(f"minatar/{game}" for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders")),
    "gymnasium/CartPole-v1", "gymnasium/Pendulum-v1", "gymnasium/Acrobot-v1", "gymnasium/MountainCar-v0",
    "gymnasium/Hopper-v4", "gymnasium/Hopper-v5", "gymnasium/Ant-v5", "gymnasium/Humanoid-v5", "gymnasium/Reacher-v5",
]  # fmt: skip


def act(spec, draws, num_envs):
    return {
        name: draws.integers(0, leaf.sizes[0], num_envs)
        if leaf.kind == "discrete"
        else draws.normal(size=(num_envs, *leaf.shape)).astype(np.float32)
        for name, leaf in spec.actions.items()
    }


def same(a, b):
    return all(np.array_equal(a.obs[name], b.obs[name]) for name in a.obs) and all(
        np.array_equal(x, y) for x, y in zip(a[1:6], b[1:6], strict=True)
    )


@pytest.mark.parametrize("name", EXACT)
def test_restored_group_continues_exactly(name):
    one, two = (make_group(name, 3, seeds, exact=True) for seeds in ([1, 2, 3], [50, 51, 52]))
    draws = np.random.default_rng(0)
    one.reset(), two.reset()
    for _ in range(60):
        one.step(act(one.spec, draws, 3))
        two.step(act(one.spec, draws, 3))
    state = json.dumps(one.snapshot())
    two.restore(json.loads(state))  # `one` continues without a restore
    episodes = 0
    for _ in range(300):
        action = act(one.spec, draws, 3)
        a, b = one.step(action), two.step(action)
        assert same(a, b)
        assert a.episodes == b.episodes
        episodes += len(a.episodes)
    assert episodes or name in ("minatar/freeway", "gymnasium/Acrobot-v1", "gymnasium/Ant-v5")


def test_restored_group_differs_without_its_random_numbers():
    """Negative control: without the generators the episodes differ."""
    one, two = (make_group("minatar/seaquest", 3, seeds) for seeds in ([1, 2, 3], [50, 51, 52]))
    draws = np.random.default_rng(0)
    state, other = one.snapshot(), two.snapshot()
    two.restore({**state, "random": other["random"]})
    actions = [act(one.spec, draws, 3) for _ in range(200)]
    assert not all(same(one.step(action), two.step(action)) for action in actions)


class Secret(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}


def test_snapshot_names_an_environment_that_cannot_be_saved():
    with pytest.raises(EnvError, match=r"test/secret: Secret cannot be saved exactly: it has no snapshot\(\)"):
        EnvGroup(Secret, 1, [0], name="test/secret").snapshot()
    wrapped = EnvGroup(lambda: gymnasium.wrappers.TransformReward(Secret(), abs), 1, [0], name="test/wrapped")
    with pytest.raises(EnvError, match="wrapper TransformReward"):
        wrapped.snapshot()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
)


@settings(deadline=None, max_examples=50)
@given(plain)
def test_decode_inverts_encode_for_plain_state(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert repr(back) == repr(value)  # includes NaN, -0.0 and types


def test_decode_inverts_encode_for_arrays_scalars_and_generators():
    generator, random = np.random.default_rng(3), np.random.RandomState(4)
    generator.normal(size=7), random.random_sample(5)
    values = [np.float32(0.1), np.int8(-3), np.arange(6, dtype=np.int16).reshape(2, 3)[:, ::2], np.array(["a", "bc"])]
    back = decode(json.loads(json.dumps(encode([values, generator, random]))))
    for a, b in zip(values, back[0], strict=True):
        assert type(a) is type(b)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert np.array_equal(generator.normal(size=9), back[1].normal(size=9))
    assert np.array_equal(random.random_sample(9), back[2].random_sample(9))
    for kind in (np.random.Philox, np.random.SFC64, np.random.MT19937, np.random.PCG64DXSM):
        drawn = np.random.Generator(kind(5))
        drawn.normal(size=3)
        assert np.array_equal(decode(encode(drawn)).normal(size=9), drawn.normal(size=9))


def test_encode_raises_for_other_types():
    with pytest.raises(SnapshotError, match=r"builtins\.object is not plain state"):
        encode({"a": [object()]})
