"""Groups with images: content of the images, and unchanged episodes."""

import numpy as np
import pytest

from sfactory.envs import EnvError, make_group


def group(name, num_envs=2, **settings):
    return make_group(name, num_envs, list(range(num_envs)), settings, render=True)


@pytest.mark.parametrize("game", ["asterix", "breakout", "freeway", "seaquest", "space_invaders"])
def test_minatar_colours_cover_every_channel(game):
    from sfactory_envs.minatar import BACKGROUND, COLOURS

    games = group(f"minatar/{game}")
    games.reset()
    channels = games.channels
    for name, index in channels.items():
        games.obs["obs"][1] = False
        games.obs["obs"][1, 4, 7, index] = True
        picture = games.render(1)
        assert picture.dtype == np.uint8
        assert tuple(picture[4, 7]) == COLOURS[name]
        picture[4, 7] = BACKGROUND
        assert (picture == BACKGROUND).all()


def test_atari_render_shows_the_screen_in_color_and_does_not_change_the_game():
    filmed, plain = group("atari/breakout"), make_group("atari/breakout", 2, [0, 1])
    try:
        one, two = filmed.reset(), plain.reset()
        for t in range(40):
            np.testing.assert_array_equal(one["obs"], two["obs"])
            action = {"action": np.array([t % 4, (t // 3) % 4])}
            first, second = filmed.step(action), plain.step(action)
            one, two = first.obs, second.obs
            np.testing.assert_array_equal(first.reward, second.reward)
        picture = filmed.render(0)
        assert (picture.shape, picture.dtype, filmed.render_fps) == ((210, 160, 3), np.uint8, 15)
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 6, "bricks have six colors"
        assert (picture != filmed.render(1)).any()
    finally:
        plain.close()


def test_classic_control_renders_without_a_display():
    poles = group("gymnasium/CartPole-v1", 9)  # without render, this many would be one vector environment
    before = [poles.reset(), poles.render(8)][1]
    for _ in range(5):
        poles.step({"action": np.ones(9, np.int64)})
    after = poles.render(8)
    poles.close()
    assert (after.shape, after.dtype, poles.render_fps) == ((400, 600, 3), np.uint8, 50)
    assert (before != after).any()
    assert poles.spec.protocol == "CartPole-v1", "a film is no other protocol"


def test_mujoco_renders_without_a_display_or_names_what_to_install():
    hopper, message = group("gymnasium/Hopper-v5", 1), ""
    hopper.reset()
    try:
        picture = hopper.render(0)
    except EnvError as error:
        message, picture = str(error), np.arange(3 * 480 * 480).reshape(480, 480, 3)
    hopper.close()
    assert not message or "apt-get install libegl1" in message
    assert picture.shape == (480, 480, 3)
    assert picture.std() > 10


def test_mujoco_render_error_names_what_to_install(monkeypatch):
    hopper = group("gymnasium/Hopper-v5", 1)
    hopper.reset()
    monkeypatch.setattr(hopper.envs[0].unwrapped.mujoco_renderer, "render", lambda *_: 1 / 0)
    with pytest.raises(
        EnvError, match=r"Hopper-v5 cannot be rendered on this machine: ZeroDivision.*apt-get install libegl1"
    ):
        hopper.render(0)
    hopper.close()


@pytest.mark.parametrize("name", ["memory/tmaze", "envpool/CartPole-v1", "faults/count"])
def test_make_group_names_an_environment_without_render(name):
    with pytest.raises(EnvError, match=name):
        group(name)


def test_render_names_an_environment_without_images():
    plain = make_group("gymnasium/Pendulum-v1", 1, [0])
    plain.reset()
    with pytest.raises(EnvError, match=r"Pendulum-v1: no video, because render\(\) in mode None returns no image"):
        plain.render(0)
    plain.close()


OWN = """
import gymnasium

class Own(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(0, 1, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}

class Modeless(Own):
    metadata = {"render_modes": ["rgb_array"]}

    def render(self):
        return None
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Own", "own_pictures:Own: no video, because it has no render(): write one that returns a picture [H, W, 3], "
         "uint8"),
        ("Modeless", "own_pictures:Modeless: no video, because render() in mode None returns no image [H, W, 3]; take "
         "render_mode in __init__ and keep it as self.render_mode"),
    ],
)  # fmt: skip
def test_own_environment_that_renders_nothing_is_told_what_to_write(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_pictures.py").write_text(OWN)
    envs = make_group(f"own_pictures:{name}", 1, [0], render=True)
    envs.reset()
    with pytest.raises(EnvError) as caught:
        envs.render(0)
    envs.close()
    assert str(caught.value) == message
