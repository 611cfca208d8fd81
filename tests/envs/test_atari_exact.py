"""SteppedAtari and ExactAtariGroup: equal to ale-py's vector environment, and exact snapshots."""

import json

import numpy as np
import pytest
from sfactory_envs import atari
from sfactory_envs.atari_exact import AreaResize, area_weights, below, mt19937, pack, unpack

from sfactory.envs import EnvError, make_group

SEEDS = [0, 2**31 - 1]


def group_of(game, seeds=SEEDS, exact=True, **settings):
    return make_group(f"atari/{game}", len(seeds), seeds, settings, exact)


def actions(group, steps, seed=0):
    n = group.spec.actions["action"].sizes[0]
    for row in np.random.default_rng(seed).integers(0, n, (steps, group.num_envs)):
        yield {"action": row}


def same(a, b):
    arrays = ("reward", "terminated", "truncated", "valid", "first")
    return (
        np.array_equal(a.obs["obs"], b.obs["obs"])
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
        and a.episodes == b.episodes
    )


def compare(game, steps, seeds=SEEDS, **settings):
    """Step both groups; return the numbers of ended games, terminations and truncations."""
    native, exact = (group_of(game, seeds, exact, **settings) for exact in (False, True))
    assert native.spec == exact.spec
    assert np.array_equal(native.reset()["obs"], exact.reset()["obs"])
    ends = np.zeros(3, int)
    for t, action in enumerate(actions(native, steps)):
        a, b = native.step(action), exact.step(action)
        assert same(a, b), f"{game}: step {t}"
        ends += len(a.episodes), a.terminated.sum(), a.truncated.sum()
    native.close(), exact.close()
    return ends


@pytest.mark.sampled(2)
@pytest.mark.parametrize("protocol", ["dqn", "machado"])
@pytest.mark.parametrize(("game", "seeds"), [("breakout", [0]), ("space_invaders", [5]), ("pong", [2**31 - 1])])
def test_stepped_atari_equals_the_vector_environment(game, seeds, protocol):
    games, terminations, _ = compare(game, 600 if game == "breakout" else 200, seeds, protocol=protocol)
    if game == "breakout":
        assert games >= 2
        assert terminations >= (10 if protocol == "dqn" else 2)


@pytest.mark.parametrize(
    ("game", "settings"),
    [
        ("boxing", {"full_action_space": True, "stack_num": 2, "maxpool": False}),
        ("double_dunk", {"protocol": "machado", "repeat_action_probability": 0.1}),  # its reset presses buttons
        ("air_raid", {"protocol": "machado", "noop_max": 7, "use_fire_reset": True}),  # 250 scanlines
    ],
)
def test_stepped_atari_supports_the_settings_of_the_vector_environment(game, settings):
    compare(game, 30, [3], **settings)


def test_stepped_atari_time_limit_acts_in_the_middle_of_a_step(monkeypatch):
    monkeypatch.setattr(atari, "FRAMES", 103)
    games, _, truncations = compare("pong", 60, [5])
    assert games == truncations == 2


def test_stepped_atari_equals_it_after_a_reset_and_an_illegal_action():
    native, exact = (group_of("breakout", exact=exact) for exact in (False, True))
    native.reset(), exact.reset()
    for t, action in enumerate(actions(native, 60)):
        if t == 10:
            assert np.array_equal(native.reset()["obs"], exact.reset()["obs"])
        if t == 20:
            action["action"][1] = 99
        a, b = native.step(action), exact.step(action)
        assert same(a, b)
        assert [fault.env for fault in a.faults] == [fault.env for fault in b.faults] == [1] * (t == 20)


def test_stepped_atari_draws_no_ops_like_the_vector_environment():
    """With this seed and bound, the division in older libstdc++ gives 81, the multiplication in newer ones 80."""
    assert below(mt19937(43939), 100_000) == 80
    assert mt19937(5489).random_raw() == 3499211612  # first number of std::mt19937 according to the standard
    compare("breakout", 2, [43939], noop_max=100_000)


@pytest.mark.parametrize("size", [210, 250, 160])
def test_area_weights_cover_every_pixel_once(size):
    index, weight = area_weights(size)
    assert np.allclose(weight.sum(0), 1)
    covered = np.zeros(size)
    np.add.at(covered, index, weight)
    assert np.allclose(covered, 84 / size)


def test_area_resize_rounds_halves_by_the_last_bit():
    """Compare with the definition: equal except for exact halves, which are rounded either way."""
    screens = np.random.default_rng(0).integers(0, 256, (2, 210, 160), dtype=np.uint8)
    cover = {}
    for size in screens.shape[1:]:
        pixel, target, scale = np.arange(size)[:, None], np.arange(84), size / 84
        overlap = np.minimum(pixel + 1, (target + 1) * scale) - np.maximum(pixel, target * scale)
        cover[size] = overlap.clip(0) / scale
    area = np.einsum("nhw,hy,wx->nyx", screens.astype(float), cover[210], cover[160], optimize=True)
    off = AreaResize(210, 160)(screens) - area
    assert np.abs(off).max() < 0.5001
    halves = off[np.abs(off) > 0.4999]
    assert (halves > 0).any()
    assert (halves < 0).any()


def saved_and_restored(game, steps, spoil=lambda state: None, **settings):
    """Return a group after some steps, and another one with its snapshot loaded from JSON."""
    one, two = (group_of(game, [seed], **settings) for seed in (1, 11))
    one.reset(), two.reset()
    for action in actions(one, steps):
        one.step(action)
    for action in actions(two, 5, seed=1):
        two.step(action)
    state = json.loads(json.dumps(one.snapshot()))
    spoil(state)
    two.restore(state)
    return one, two


@pytest.mark.parametrize(
    ("game", "steps", "settings"),
    [
        ("breakout", 150, {}),
        ("breakout", 150, {"protocol": "machado", "full_action_space": True}),
        ("qbert", 60, {"protocol": "machado"}),  # its ALEState alone does not suffice
    ],
)
def test_exact_atari_group_continues_exactly_after_restore(game, steps, settings):
    one, two = saved_and_restored(game, steps, **settings)
    games = 0
    for t, action in enumerate(actions(one, 150, seed=2)):
        a, b = one.step(action), two.step(action)
        assert same(a, b), f"step {t}"
        games += len(a.episodes)
        if t == 75 and game == "qbert":  # a restored group can be saved again
            one, two = two, one
            two.restore(one.snapshot())
    assert games >= (game == "breakout")


def test_exact_atari_group_restores_a_game_saved_at_its_end():
    one, two = (group_of("breakout", seeds, protocol="machado") for seeds in ([1, 3], [2, 4]))
    one.reset(), two.reset()
    steps = (one.step(action) for action in actions(one, 1000))
    assert next(step for step in steps if step.terminated.any()).valid.all()
    two.restore(one.snapshot())
    for t, action in enumerate(actions(one, 2, seed=2)):
        a, b = one.step(action), two.step(action)
        assert same(a, b)
        assert a.valid.all() == (t > 0)


def lose_the_no_ops(state):
    for game in state["native"]["games"]:
        own = dict(game["own"][0]["dict"])
        own["state"]["dict"][1][1] = 600  # position of the generator
        game["own"][0]["dict"] = [list(pair) for pair in own.items()]


def test_exact_atari_group_diverges_without_the_generator_of_the_no_ops():
    """Negative control."""
    one, two = saved_and_restored("breakout", 0, lose_the_no_ops)
    assert not all(same(one.step(action), two.step(action)) for action in actions(one, 400))


def test_exact_atari_group_refuses_a_replay_that_differs():
    def lose_an_action(state):
        game = state["native"]["games"][0]
        game["played"] = pack(unpack(game["played"])[:-1])

    with pytest.raises(EnvError, match="the replay differs from the saved game"):
        saved_and_restored("breakout", 50, lose_an_action)


def test_make_group_returns_a_snapshot_group_only_for_exact():
    assert not hasattr(group_of("pong", [1], exact=False), "snapshot")
    assert hasattr(group_of("pong", [1]), "snapshot")
    with pytest.raises(EnvError, match="no exact checkpoints with img_width"):
        group_of("pong", img_width=64)
    for exact in (False, True):
        with pytest.raises(EnvError, match="frameskip"):
            group_of("pong", [1], exact=exact, frameskip=2)
