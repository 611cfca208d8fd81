"""`SmallPictures`: blocks, colors and the last frames of every agent."""

from typing import ClassVar

import numpy as np
import pettingzoo
import pytest
from gymnasium import spaces

from sfactory.envs import EnvOptions, make_group
from sfactory.envs.small_pictures import SmallPictures


class Screens(pettingzoo.ParallelEnv):
    """Every agent sees a picture of its own, drawn from the number of the step; `b` comes in step 2."""

    metadata: ClassVar = {"name": "screens"}
    possible_agents: ClassVar = ["a", "b"]
    shape = (11, 8, 3)

    def observation_space(self, agent):
        return spaces.Box(0, 255, self.shape, np.uint8)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def picture(self, agent):
        return np.random.default_rng([self.t, ord(agent)]).integers(256, size=self.shape).astype(np.uint8)

    def reset(self, seed=None, options=None):
        self.t, self.agents = 0, ["a"]
        return {"a": self.picture("a")}, {"a": {}}

    def step(self, actions):
        self.t += 1
        if self.t == 2:
            self.agents = ["a", "b"]
        there = dict.fromkeys(self.agents, False)
        return {agent: self.picture(agent) for agent in there}, dict.fromkeys(there, 0.0), there, there, {}


def slow(picture, shrink, grey):
    """Twin: the mean of every block, number by number."""
    colors = picture if picture.ndim == 3 else picture[..., None]
    h, w = picture.shape[0] // shrink, picture.shape[1] // shrink
    out = np.zeros((h, w, 1 if grey else colors.shape[2]), np.uint8)
    for i in range(h):
        for j in range(w):
            block = colors[i * shrink : (i + 1) * shrink, j * shrink : (j + 1) * shrink].astype(int)
            means = [block.sum() // block.size] if grey else [c.sum() // c.size for c in np.moveaxis(block, 2, 0)]
            out[i, j] = means
    return out[..., 0] if grey or picture.ndim == 2 else out


@pytest.mark.parametrize("shape", [(11, 8, 3), (11, 8)])
@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("shrink", [1, 2, 3])
def test_small_pictures_are_means_of_blocks(shape, grey, shrink):
    env = type("One", (Screens,), {"shape": shape})()
    small = SmallPictures(env, shrink=shrink, grey=grey)
    obs, _ = small.reset()
    np.testing.assert_array_equal(obs["a"], slow(env.picture("a"), shrink, grey))
    assert small.observation_space("a").shape == obs["a"].shape
    assert obs["a"].dtype == np.uint8


def test_small_pictures_keep_the_last_frames_of_each_agent_from_its_first_one():
    env = Screens()
    small = SmallPictures(env, shrink=2, frames=3)
    assert small.observation_space("b").shape == (3, 5, 4)
    a, b = [], []
    for _ in range(2):  # a reset forgets the frames of the episode before
        obs = small.reset()[0]
        a, b = [slow(env.picture("a"), 2, True)] * 3, []
        np.testing.assert_array_equal(obs["a"], np.stack(a))
        for _ in range(4):
            obs = small.step({})[0]
            a = [*a[1:], slow(env.picture("a"), 2, True)]
            np.testing.assert_array_equal(obs["a"], np.stack(a))
            if "b" in obs:
                newest = slow(env.picture("b"), 2, True)
                b = [*b[1:], newest] if b else [newest] * 3
                np.testing.assert_array_equal(obs["b"], np.stack(b))
    assert len(b) == 3


def test_small_pictures_refuse_what_they_cannot_make_smaller():
    with pytest.raises(ValueError, match="shrink 9 leaves nothing of 11 x 8 pixels"):
        SmallPictures(Screens(), shrink=9)
    with pytest.raises(ValueError, match="must be 1 or more"):
        SmallPictures(Screens(), frames=0)


@pytest.mark.parametrize("render", [True, False])
def test_small_pictures_of_a_game_move(render):
    """Without a render mode PettingZoo 1.27 would show the first picture in every step."""
    tables = {"SmallPictures": {"shrink": 5, "frames": 2}}
    options = EnvOptions(wrappers=("SmallPictures",), wrapper_settings=tables, agent_id=True)
    group = make_group("pettingzoo/butterfly/cooperative_pong", 2, [3, 4], options, render=render)
    assert group.reset()["obs"].shape == (4, 2, 56, 96)
    for _ in range(3):
        seen = group.step({"action": np.array([1, 1, 1, 1])}).obs["obs"]
        assert (seen[:, 0] != seen[:, 1]).any(axis=(1, 2)).all()
    if render:
        assert group.render(0).shape == (280, 480, 3)
