"""`check-env`: random actions, the suggested command, the report, and results for real environments."""

import json
import math
import os
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from conforming_env import RULES, ConformingEnv, checked, levels, sentences

import sfactory
from sfactory import api
from sfactory.config.parsing import RawValue
from sfactory.envs import ActionLeaf, EnvOptions, EnvSpec, Leaf
from sfactory.tools import check_env
from sfactory.tools.check_env import EnvReport, check, nearest
from sfactory.tools.random_rollout import random_action

# -- actions -------------------------------------------------------------------------------------------------


def test_random_action_covers_the_legal_actions():
    spec = EnvSpec("x", {}, {
        "one": ActionLeaf((), "int64", "discrete", (3,)),
        "two": ActionLeaf((2,), "int64", "discrete", (2, 4)),
        "box": ActionLeaf((2, 2), "float32", "box", (4,), (-1.0, -math.inf, 0.0, 5.0), (1.0, math.inf, math.inf, 6.0)),
    })  # fmt: skip
    obs, draws = {"obs": np.zeros((500, 1))}, np.random.default_rng(0)
    action = random_action(spec, obs, draws)
    assert {name: (a.shape, str(a.dtype)) for name, a in action.items()} == {
        "one": ((500,), "int64"), "two": ((500, 2), "int64"), "box": ((500, 2, 2), "float32"),
    }  # fmt: skip
    assert set(action["one"]) == {0, 1, 2}
    assert [set(column) for column in action["two"].T] == [{0, 1}, {0, 1, 2, 3}]
    box = action["box"].reshape(500, 4)
    assert np.isfinite(box).all()
    assert (abs(box[:, 0]) <= 1).all()
    assert box[:, 0].std() > 0.5
    assert box[:, 1].std() > 0.8
    assert (box[:, 2] >= 0).all()
    assert ((box[:, 3] >= 5) & (box[:, 3] <= 6)).all()


def test_random_action_respects_the_mask():
    class Masked(ConformingEnv):
        obs: ClassVar = {"obs/action_mask": Leaf((2,), "int64"), "obs/x": Leaf((2,), "float32")}
        mask = "obs/action_mask"

        def observe(self):
            return {"obs/action_mask": np.tile([0, 1], (self.num_envs, 1)), "obs/x": self.position}

        def step(self, action):
            assert (action["action"] == 1).all()
            return super().step(action)

    report = checked(Masked)
    assert not report.bad
    assert levels(report)["observations"] == "ok"  # a mask may stay what it is
    assert ", the mask" in report.text()
    assert levels(report)["network"] == "ok"


# -- the suggested command and the report ------------------------------------------------------------------------


def spec_of(shape, dtype="float32"):
    return EnvSpec("x", {"obs": Leaf(shape, dtype)}, ConformingEnv.actions)


def test_nearest_suggests_the_preset_of_the_environment():
    command, why, _ = nearest("gymnasium/CartPole-v1", spec_of((4,)))
    assert (command, why) == (["sfactory", "train", "classic/cartpole"], "its preset")
    assert nearest("minatar/breakout", spec_of((10, 10, 4)), "minatar/breakout")[0][-1] == "minatar/breakout"


def test_nearest_uses_family_defaults_for_the_observations_they_suit():
    command, why, given = nearest("gymnasium/MountainCar-v0", spec_of((2,)))
    assert command == ["sfactory", "train", "gymnasium/MountainCar-v0"]
    assert why == "the defaults of gymnasium"
    assert given["env.name"] == "gymnasium/MountainCar-v0"
    assert given["normalize.obs"] is True


def test_nearest_uses_the_defaults_of_gymnasium_for_a_family_without_settings():
    command, why, given = nearest("faults/count", spec_of((3,)))
    assert command == ["sfactory", "train", "faults/count"]
    assert why == "the defaults of gymnasium"
    assert (given["env.name"], given["normalize.obs"]) == ("faults/count", True)


@pytest.mark.parametrize(("shape", "dtype"), [((32, 32, 3), "uint8"), ((7, 7, 3), "uint8"), ((96, 96, 3), "float32")])
def test_nearest_never_uses_the_settings_of_another_family_for_a_picture(shape, dtype):
    """MinAtar's learning rate of 2e-3 does not learn from pictures of 32x32."""
    command, why, given = nearest("gymnasium/Picture-v0", spec_of(shape, dtype))
    assert (command, why) == (["sfactory", "train", "gymnasium/Picture-v0"], "the defaults of gymnasium")
    assert given["optim.lr"] == 3e-4


def test_check_tries_and_repeats_flags_of_training():
    flags = {"model.hidden": RawValue("32,16"), "optim.lr": RawValue("1e-3"), "env.name": RawValue("x/y")}
    report = checked(ConformingEnv, flags=flags)
    assert report.train.endswith(" --model.hidden=32,16 --optim.lr=1e-3")
    own = 3 * 32 + 33 * 16 + 17  # two layers, one of the heads
    assert f"{2 * own + 17:,} weights" in sentences(report, "network"), "separate networks, two logits and a value"


def test_check_replaces_a_flag_that_a_rule_changes():
    class Large(ConformingEnv):
        def observe(self):
            return {"obs": 300 * self.position}

    report = checked(Large, flags={"normalize.obs": RawValue("false")})
    assert levels(report)["observations"] == "warn"
    assert report.train == "sfactory train faults/walk --normalize.obs true"
    assert report.reading == ("obs: vector of 2 float32 -> mlp, normalized",)


def test_check_repeats_given_settings_in_the_suggested_command():
    options = EnvOptions({"max_episode_steps": 50}, protocol="two words", drop=("mission", "x"))
    report = check("minatar/breakout", options, steps=5, make=ConformingEnv)
    assert report.train.startswith("sfactory train minatar/breakout ")
    assert "--env.settings.max_episode_steps=50" in report.train
    assert "'--env.protocol=two words'" in report.train
    assert "--env.drop=mission,x" in report.train


def test_env_report_as_text_and_json():
    class Boxed(ConformingEnv):
        actions: ClassVar = {"action": ActionLeaf((1,), "float32", "box", (1,), (-math.inf,), (2.0,))}
        obs: ClassVar = {"obs": Leaf((2,), "float32", (-math.inf, 0.0), (math.inf, 1.0))}

        def step(self, action):
            return super().step({"action": action["action"][:, 0] > 0})

    report = checked(Boxed)
    assert isinstance(report, EnvReport)
    text = report.text()
    for part in ("float32 [2]", "1 numbers from -inf to 2", "at most 12 steps", "frame skip", "protocol", "mask"):
        assert part in text or part == "mask"
    assert text.splitlines()[-1].startswith("sfactory train faults/walk")
    assert max(map(len, text.splitlines()[:-1])) < 120
    report_json = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert report_json["bad"] is False
    assert {finding["title"] for finding in report_json["findings"]} == RULES
    assert report_json["spec"]["actions"]["action"]["low"] == [None]
    assert report_json["spec"]["obs"]["obs"]["high"] == [None, 1.0]
    assert report_json["steps"] == report.steps
    assert report_json["reading"] == ["obs: vector of 2 float32 -> mlp, normalized"]
    assert report_json["reading"][0] in text.splitlines()


# -- the real ones -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("gymnasium/CartPole-v1", "classic/cartpole"),
        ("gymnasium/Pendulum-v1", "classic/pendulum"),
        ("minatar/breakout", "minatar/breakout"),
    ],
)
def test_supported_environments_pass_every_rule(name, preset):
    report = check(name, steps=400)
    assert levels(report) == dict.fromkeys(RULES, "ok"), report.text()
    assert report.train == f"sfactory train {preset}"
    assert "episodes, mean return" in sentences(report, "rewards")


@pytest.mark.parametrize(("game", "steps"), [("pong", 850), ("breakout", 200)])  # a whole game each, with its lives
def test_atari_passes_every_rule(game, steps, monkeypatch):
    monkeypatch.setattr(check_env, "ENVS", 1)
    monkeypatch.setattr(check_env, "REPLAY", 50)
    report = check(f"atari/{game}", steps=steps, seconds=30.0, seed=3)
    assert levels(report) == dict.fromkeys(RULES, "ok"), report.text()
    assert ("lost lives" in sentences(report, "autoreset")) == (game == "breakout")


def test_report_of_an_environment_that_fails_gives_no_further_advice():
    report = check("faults/count", {"crash_at": 2}, steps=200)
    assert report.bad
    assert {finding.level for finding in report.findings} <= {"bad", "ok"}
    assert "speed" not in {finding.title for finding in report.findings}
    assert report.text().endswith("\n\nbefore it can train: correct what is marked bad, and check again")
    assert "sfactory train" not in report.text()


class Drawn(gymnasium.Env):
    """An environment of the user's own; `picture` is what render() returns or raises."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(0, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None, picture=None):
        self.render_mode, self.picture = render_mode, picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        return self.np_random.random(2, np.float32), 1.0, bool(self.np_random.random() < 0.1), False, {}


class Picture(Drawn):
    def render(self):
        return np.zeros((30, 40, 3), np.uint8)


class NoPicture(Drawn):
    def render(self):
        return "text"


class BrokenPicture(Drawn):
    def render(self):
        return self.window.draw()


class Crash(Drawn):
    def render(self):
        os._exit(3)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("env", "level", "sentence"),
    [
        (Picture, "ok", "render() draws pictures of 40 x 30, for eval --video and eval.video"),
        (Drawn, "ok", "training works without pictures; no video, because it has no render(): write one that returns"),
        (NoPicture, "ok", "no video, because render() in mode rgb_array returns no image [H, W, 3]"),
        (BrokenPicture, "warn", "AttributeError: 'BrokenPicture' object has no attribute 'window'"),
        (Crash, "warn", "it ended its process (exit code 3)"),
    ],
)
def test_check_says_whether_an_environment_draws_pictures(env, level, sentence):
    (report,) = api.check_envs(sfactory.make_config(f"{__name__}:{env.__name__}"), seconds=0.2)
    assert levels(report)["rendering"] == level, report.text()
    assert sentence in sentences(report, "rendering")


def test_check_names_the_place_of_a_wrong_observation_once():
    report = check(f"{__name__}:WrongShape", seconds=0.3)
    (sentence,) = [finding.sentence for finding in report.findings if finding.level == "bad"]
    assert f"obs has shape (3,), but its space has (2,); see step, {__file__}, line" in sentence
    assert "obs_leaf.py" not in sentence
    assert "gymnasium_adapter.py" not in sentence


class WrongShape(Drawn):
    def step(self, action):
        return np.zeros(3, np.float32), 1.0, False, False, {}
