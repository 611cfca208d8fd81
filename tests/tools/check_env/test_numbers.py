"""What `check-env` must notice of data, observations, rewards, seeds and speed."""

import json
import math
import time
from typing import ClassVar

import numpy as np
import pytest
from conforming_env import Walk, checked, expect, levels, said

from sfactory.envs import EnvError, EnvFault, Leaf, Step, Tally
from sfactory.tools import check_env
from sfactory.tools.check_env import check, parting
from sfactory.tools.env_trace import COLUMNS, record

# -- data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s._replace(obs={"obs": s.obs["obs"].astype(np.float64)}), "obs is float64 [4, 2], the spec says"),
        (lambda s: s._replace(obs={"obs": s.obs["obs"][:, :1]}), "obs is float32 [4, 1], the spec says"),
        (lambda s: s._replace(obs={"o": s.obs["obs"]}), "leaves ['o'], the spec says ['obs']"),
        (lambda s: s._replace(reward=s.reward.astype(np.float64)), "reward is float64 [4]"),
        (lambda s: s._replace(first=s.first.astype(int)), "first is int64 [4], the spec says bool"),
        (lambda s: s._replace(reward=s.reward * np.nan), "NaN or infinity"),
        (lambda s: s._replace(obs={"obs": s.obs["obs"] + np.inf}), "NaN or infinity"),
    ],
)
def test_data_that_is_not_what_the_spec_promises_is_bad(spoil, words):
    class Spoilt(Walk):
        def spoil(self, step):
            return spoil(step) if self.calls == 100 else step

    report = expect(Spoilt, "data", "bad", words)
    assert "step 99: " in said(report, "data")


def test_a_first_observation_of_the_wrong_kind_is_all_that_is_told():
    class Wrong(Walk):
        def reset(self):
            return {"obs": self.place.astype(int)}

    report = checked(Wrong)
    assert [(level, title) for level, title, _ in report.findings] == [("bad", "data")]
    assert "0 steps" in report.text()
    json.dumps(report.as_dict())


def test_a_group_that_raises_is_bad_and_the_rest_is_told_all_the_same():
    report = check("faults/count", {"crash_at": 60}, steps=200)
    assert "step 60 raised CrashError: told to crash at call 60" in said(report, "data")
    assert levels(report)["autoreset"] == "ok"
    assert report.bad


def test_a_reset_that_raises_is_bad():
    found = check("faults/count", {"raise_at": -3}).findings
    assert found[0].level == "bad"
    assert "the first reset raised EnvError: faults/count failed at its first reset" in found[0].sentence


@pytest.mark.parametrize("knob", ["raise_at", "nan_obs_at", "nan_reward_at", "bad_shape_at"])
def test_faults_are_counted_and_the_first_is_shown(knob):
    report = check("faults/count", {knob: 34}, steps=200)
    assert "an environment failed 1 times, first: ValueError: " in said(report, "data")
    assert "(seed " in said(report, "data")
    assert levels(report)["autoreset"] == "ok", report.text()
    assert report.bad


def test_native_code_that_begins_every_game_anew_keeps_the_rules():
    class Native(Walk):
        def spoil(self, step):
            if self.calls != 7:
                return step
            self.reset()
            self.over[:], never = False, np.zeros(self.num_envs, bool)
            self.tally = Tally(self.num_envs)
            fault = (EnvFault(2, "NaN from C++"),)
            return Step(self.see(), np.zeros(4, np.float32), never, never, never, ~never, (), fault)

    report = checked(Native)
    assert levels(report)["autoreset"] == "ok", report.text()
    assert "first: NaN from C++" in said(report, "data")


def test_a_row_of_a_failed_environment_that_counts_is_bad():
    class Counts(Walk):
        def spoil(self, step):
            return step._replace(faults=(EnvFault(0, "broke"),)) if self.calls == 1 else step

    assert "a valid row where the environment failed" in said(checked(Counts), "autoreset")


def test_what_cannot_be_built_is_an_error_of_its_own():
    with pytest.raises(EnvError, match="did you mean count"):
        check("faults/cuont")
    with pytest.raises(EnvError) as caught:
        check("gymnasium/CartPole-v1", {"gravitas": 9})
    assert caught.value.fault


# -- observations and rewards --------------------------------------------------------------------------------


def showing(leaf, look):
    """A Walk whose one observation leaf is `look(place [E, 2])`."""

    class Shown(Walk):
        obs: ClassVar = {"obs": leaf}

        def see(self):
            return {"obs": look(self.place)}

    return Shown


def test_an_observation_that_never_changes_is_a_warning():
    group = showing(Leaf((2,), "float32"), lambda place: np.full_like(place, 0.5))
    report = checked(group)
    assert "obs never changed in 150 steps" in said(report, "observations")
    assert levels(report)["observations"] == "warn"
    assert "final observation" not in levels(report)  # nothing can be seen of it


def test_numbers_that_never_change_are_counted():
    group = showing(Leaf((3,), "float32"), lambda place: np.pad(place, ((0, 0), (0, 1))))
    assert "1 of 3 numbers never changed" in said(checked(group), "observations")


def test_large_observations_want_to_be_normalised_unless_a_preset_does(monkeypatch):
    group = showing(Leaf((2,), "float32"), lambda place: 300 * place)
    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", {}))
    report = expect(group, "observations", "warn", "a network wants numbers near 1")
    assert report.train == "sfactory train fake/walk --normalize.obs true"
    given = {"normalize.obs": True}
    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", given))
    report = checked(group)
    assert levels(report)["observations"] == "ok"
    assert report.train == "sfactory train fake/walk"


def test_whole_numbers_in_floats_may_be_categories():
    group = showing(Leaf((2,), "float32"), lambda place: np.rint(5 * place).astype(np.float32))
    assert "categories want a Discrete space" in said(checked(group), "observations")


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (Leaf((4, 40, 40), "float32"), "an image of float32: encoders divide pixels by 255"),
        (Leaf((40, 40, 3), "uint8"), "an image with its channels last: encoders want [C, H, W]"),
        (Leaf((4, 40, 40), "uint8"), "between"),
    ],
)
def test_images_have_to_be_what_the_encoders_take(leaf, words):
    def look(place):
        pixels = np.abs(50 * place[:, :1]).astype(leaf.dtype) + np.zeros((len(place), math.prod(leaf.shape)))
        return pixels.reshape(-1, *leaf.shape).astype(leaf.dtype)

    report = checked(showing(leaf, look))
    assert words in said(report, "observations")
    assert levels(report)["observations"] == ("ok" if words == "between" else "warn")


def paying(reward):
    """A Walk with other rewards, the games told accordingly."""

    class Paid(Walk):
        def spoil(self, step):
            step.reward[...] = np.where(step.valid, reward(step), 0)
            return step

    return Paid


def test_large_rewards_want_to_be_normalised_unless_a_preset_does(monkeypatch):
    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", {}))
    report = expect(paying(lambda step: 50 * step.obs["obs"][:, 0]), "rewards", "warn", "; large")
    assert report.train.endswith("--normalize.reward true")
    given = {"normalize.reward": "true"}
    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", given))
    assert levels(checked(paying(lambda step: 50 * step.obs["obs"][:, 0])))["rewards"] == "ok"


def test_rewards_of_a_game_on_pixels_want_to_be_clipped(monkeypatch):
    class Pixels(Walk):
        obs: ClassVar = {"obs": Leaf((1, 40, 40), "uint8")}

        def see(self):
            return {"obs": np.abs(50 * self.place[:, :1]).astype(np.uint8).repeat(1600, 1).reshape(-1, 1, 40, 40)}

        def spoil(self, step):
            step.reward[step.valid] *= 50
            return step

    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", {}))
    report = expect(Pixels, "rewards", "warn", "; large")
    assert report.train.endswith("--env.reward-clip 1")


def test_no_reward_at_all_is_a_warning():
    expect(paying(lambda step: 0), "rewards", "warn", "none in")


def test_statistics_of_rewards_are_those_of_valid_steps():
    group = paying(lambda step: np.where(np.arange(4) == 0, 3.0, 1.0))
    assert "1 to 3, mean 1.5, std 0.866, 100% not zero" in said(checked(group, steps=2), "rewards")


# -- seeds and speed -----------------------------------------------------------------------------------------


def test_an_environment_that_ignores_its_seeds_cannot_be_repeated():
    class Entropy(Walk):
        def __init__(self, num_envs, seeds):
            super().__init__(num_envs, np.random.SeedSequence().spawn(num_envs))

    expect(Entropy, "seeds", "warn", "the same seeds and actions give another trajectory after 0 steps")


def test_an_environment_that_is_always_the_same_is_told():
    class Same(Walk):
        def __init__(self, num_envs, seeds):
            super().__init__(num_envs, range(num_envs))

    expect(Same, "seeds", "warn", "other seeds change nothing")


def test_where_two_trajectories_part():
    a, b, c = (record(Walk(2, seeds), 30, 9.0, seed=0) for seeds in ([1, 2], [1, 2], [1, 3]))
    assert parting(a, b) is None
    assert parting(a, c) == 0
    for name in COLUMNS:
        changed = record(Walk(2, [1, 2]), 30, 9.0, seed=0)
        getattr(changed, name)[7, 1] = 1 - getattr(changed, name)[7, 1]
        assert parting(a, changed) == 8
    assert parting(a, record(Walk(2, [1, 2]), 5, 9.0, seed=0)) is None  # as far as both go


def test_time_and_resets_are_told_as_they_are(monkeypatch):
    """A clock that stands still but in steps: 1 ms each, and 5 ms for every reset in it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(check_env, "SLOW_RESETS", 0.3)

    class Timed(Walk):
        reset_s = 0.005

        def spoil(self, step):
            now[0] += 0.001 * step.valid.mean() + self.reset_s * (~step.valid).sum()
            return step

    report = checked(Timed, seconds=99.0)
    assert "a reset takes 5 ms" in said(report, "speed")
    assert levels(report)["speed"] == "warn"

    class Quick(Timed):
        reset_s = 0.00025

    report = checked(Quick, seconds=99.0)
    assert levels(report)["speed"] == "ok"
    assert "a reset takes 0.25 ms" in said(report, "speed")
    assert report.steps_per_second == pytest.approx(4000 * report.steps / 600)  # a reset here takes as long as a step


def test_a_slow_environment_is_played_for_the_seconds_it_was_given():
    begun = time.perf_counter()
    report = check("faults/count", {"slow_step": 0.02}, seconds=0.2)
    assert time.perf_counter() - begun < 1.0
    assert 4 <= report.steps <= 44


def test_groups_are_closed():
    groups = []

    def make(num_envs, seeds):
        groups.append(Walk(num_envs, seeds))
        return groups[-1]

    checked(make)
    assert len(groups) == 3
    assert all(group.closed for group in groups)
