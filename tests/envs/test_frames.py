"""Rendered pictures of every kind become the same frame."""

import gymnasium
import numpy as np
import pytest

from sfactory.envs import EnvError
from sfactory.envs.frames import to_frame
from sfactory.envs.gymnasium_adapter import EnvGroup

GREY = np.array([[0, 51, 204], [255, 102, 153]], np.uint8)
COLOR = np.stack([GREY, 255 - GREY, GREY // 3], axis=-1)
GREY_COLOR = np.stack([GREY] * 3, axis=-1)

PICTURES = {
    "bytes": (COLOR, COLOR),
    "floats from 0 to 1": (COLOR.astype(np.float32) / 255, COLOR),
    "floats from 0 to 255": (COLOR.astype(np.float64), COLOR),
    "integers": (COLOR.astype(np.int64), COLOR),
    "16 bits": (COLOR.astype(np.uint16) << 8, COLOR),
    "16 bits with the numbers of 8": (COLOR.astype(np.uint16), COLOR),
    "beyond the ends": (np.array([[[-9.0, 300.0, 7.0]]]), np.array([[[0, 255, 7]]])),
    "not a number": (np.array([[[np.nan, 0.2, 1.0]]]), np.array([[[0, 51, 255]]])),
    "transparency": (np.concatenate([COLOR, COLOR[:, :, :1]], axis=2), COLOR),
    "channels first": (np.moveaxis(np.tile(COLOR, (3, 3, 1)), 2, 0), np.tile(COLOR, (3, 3, 1))),
    "grey": (GREY, GREY_COLOR),
    "grey with a channel": (GREY[:, :, None], GREY_COLOR),
    "grey from 0 to 1": (GREY / 255, GREY_COLOR),
    "black and white": (GREY > 100, np.where(GREY_COLOR > 100, 255, 0)),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_frame_of_every_kind_of_picture(kind):
    picture, expected = PICTURES[kind]
    frame = to_frame(picture)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize("picture", [np.zeros(3), np.zeros((5, 6, 7)), np.zeros((2, 3, 3, 3)), np.array("text")])
def test_what_is_no_picture_is_no_frame(picture):
    assert to_frame(picture) is None


class Rendered(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
    render_mode = "rgb_array"

    def __init__(self, picture):
        self.picture = picture

    def render(self):
        return self.picture


def test_group_renders_floats_as_frames_and_refuses_text():
    grey = EnvGroup(lambda: Rendered(np.full((64, 64, 3), 0.8, np.float32)), 1, [0], name="some/env")
    assert (grey.render(0) == 204).all()
    with pytest.raises(EnvError, match=r"no video, because render\(\) in mode rgb_array returns no image"):
        EnvGroup(lambda: Rendered("a text"), 1, [0], name="some/env").render(0)
