"""Rules of `check-env` on data, observations, rewards, seeds and speed."""

import json
import time
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from conforming_env import ConformingEnv, checked, expect, levels, sentences
from gymnasium import spaces
from torch import nn

from sfactory.config.parsing import RawValue
from sfactory.envs import ActionLeaf, EnvError, EnvFault, Leaf, Step, Tally
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.tools import check_env, env_rules
from sfactory.tools.check_env import check
from sfactory.tools.env_rules import first_difference
from sfactory.tools.random_rollout import COLUMNS, record

# -- data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s._replace(obs={"obs": s.obs["obs"].astype(np.float64)}), "obs is float64 [4, 2], the spec has"),
        (lambda s: s._replace(obs={"obs": s.obs["obs"][:, :1]}), "obs is float32 [4, 1], the spec has"),
        (lambda s: s._replace(obs={"o": s.obs["obs"]}), "leaves ['o'], the spec has ['obs']"),
        (lambda s: s._replace(reward=s.reward.astype(np.float64)), "reward is float64 [4]"),
        (lambda s: s._replace(first=s.first.astype(int)), "first is int64 [4], the spec has bool"),
        (lambda s: s._replace(reward=s.reward * np.nan), "NaN or infinity"),
        (lambda s: s._replace(obs={"obs": s.obs["obs"] + np.inf}), "NaN or infinity"),
    ],
)
def test_data_rule_rejects_data_that_does_not_match_the_spec(change, text):
    class FaultyData(ConformingEnv):
        def change(self, step):
            return change(step) if self.calls == 100 else step

    report = expect(FaultyData, "data", "bad", text)
    assert "step 99: " in sentences(report, "data")


def test_data_rule_is_the_only_one_after_an_invalid_reset_observation():
    class Wrong(ConformingEnv):
        def reset(self):
            return {"obs": self.position.astype(int)}

    report = checked(Wrong)
    assert [(level, title) for level, title, _ in report.findings] == [("bad", "data")]
    assert "0 steps" in report.text()
    json.dumps(report.as_dict())


def test_data_rule_reports_a_step_that_raises_and_other_rules_still_run():
    report = check("faults/count", {"crash_at": 60}, steps=200)
    assert "step 60 raised CrashError: crash requested at call 60" in sentences(report, "data")
    assert levels(report)["autoreset"] == "ok"
    assert report.bad


def test_data_rule_reports_a_reset_that_raises():
    found = check("faults/count", {"raise_at": -3}).findings
    assert found[0].level == "bad"
    assert "the first reset raised EnvError: faults/count failed at its first reset" in found[0].sentence


@pytest.mark.parametrize("knob", ["raise_at", "nan_obs_at", "nan_reward_at", "bad_shape_at"])
def test_data_rule_counts_faults_and_shows_the_first(knob):
    report = check("faults/count", {knob: 34}, steps=200)
    assert "an environment failed once, first: ValueError: " in sentences(report, "data")
    assert "(seed " in sentences(report, "data")
    assert levels(report)["autoreset"] == "ok", report.text()
    assert report.bad


def test_autoreset_rule_accepts_native_code_that_resets_all_environments():
    class Native(ConformingEnv):
        def change(self, step):
            if self.calls != 7:
                return step
            self.reset()
            self.over[:], never = False, np.zeros(self.num_envs, bool)
            self.tally = Tally(self.num_envs)
            fault = (EnvFault(2, "NaN from C++"),)
            return Step(self.observe(), np.zeros(4, np.float32), never, never, never, ~never, (), fault)

    report = checked(Native)
    assert levels(report)["autoreset"] == "ok", report.text()
    assert "first: NaN from C++" in sentences(report, "data")


def test_autoreset_rule_rejects_a_valid_row_of_a_failed_environment():
    class Counts(ConformingEnv):
        def change(self, step):
            return step._replace(faults=(EnvFault(0, "broke"),)) if self.calls == 1 else step

    assert "a valid row where the environment failed" in sentences(checked(Counts), "autoreset")


def test_check_raises_env_error_for_environments_that_cannot_be_built():
    with pytest.raises(EnvError, match="did you mean count"):
        check("faults/cuont")
    with pytest.raises(EnvError) as caught:
        check("gymnasium/CartPole-v1", {"gravitas": 9})
    assert caught.value.fault


# -- observations and rewards --------------------------------------------------------------------------------


def showing(leaf, look):
    """A ConformingEnv whose one observation leaf is `look(place [E, 2])`."""

    class Shown(ConformingEnv):
        obs: ClassVar = {"obs": leaf}

        def observe(self):
            return {"obs": look(self.position)}

    return Shown


def test_observations_rule_warns_about_constant_observations():
    group = showing(Leaf((2,), "float32"), lambda place: np.full_like(place, 0.5))
    report = checked(group)
    remedy = "nothing can be learned from it: see what reset() and step() return"
    assert f"obs never changed in 150 steps; {remedy}" in sentences(report, "observations")
    assert levels(report)["observations"] == "warn"
    assert "final observation" not in levels(report)  # nothing can be seen of it


def test_observations_rule_warns_about_observations_that_stay_as_the_reset_made_them():
    """Every episode shows another number, so no leaf is constant."""

    class NeverDrawn(ConformingEnv):
        def observe(self):
            return {"obs": self.position if self.start_positions is None else self.start_positions}

    report = checked(NeverDrawn)
    assert "the observation never changed within an episode, in " in sentences(report, "observations")
    assert "what happens cannot be seen; see what reset() and step() return" in sentences(report, "observations")
    assert levels(report)["observations"] == "warn"
    assert "never changed within" not in sentences(checked(NeverDrawn, steps=60), "observations"), "too few steps"
    assert levels(checked(ConformingEnv))["observations"] == "ok"


def test_observations_rule_accepts_constant_parts_and_episodes_of_one_step():
    class PartlyDrawn(ConformingEnv):
        obs: ClassVar = {"obs/goal": Leaf((2,), "float32"), "obs/place": Leaf((2,), "float32")}

        def observe(self):
            start = self.position if self.start_positions is None else self.start_positions
            return {"obs/goal": start, "obs/place": self.position}

    class Bandit(ConformingEnv):
        """A context, one action, the end; the last observation is the context again."""

        limit = 1

        def observe(self):
            return {"obs": self.position if self.start_positions is None else self.start_positions}

        def change(self, step):
            ends = step.valid
            self.over = ends.copy()
            episodes = self.tally.end(np.flatnonzero(ends).tolist())
            return step._replace(terminated=ends, truncated=~ends & False, episodes=episodes)

    for group in (PartlyDrawn, Bandit):
        assert "within an episode" not in sentences(checked(group, steps=900), "observations")


def test_observations_rule_does_not_count_a_mask_as_something_to_see():
    class Masked(ConformingEnv):
        obs: ClassVar = {"obs": Leaf((2,), "float32"), "action_mask": Leaf((2,), "bool")}
        mask = "action_mask"

        def observe(self):
            start = self.position if self.start_positions is None else self.start_positions
            return {"obs": start, "action_mask": np.stack([self.position[:, 0] < 9, self.position[:, 1] > 0], axis=1)}

    assert "never changed within an episode" in sentences(checked(Masked), "observations")


def test_observations_rule_counts_constant_numbers():
    group = showing(Leaf((3,), "float32"), lambda place: np.pad(place, ((0, 0), (0, 1))))
    assert "1 of 3 numbers never changed" in sentences(checked(group), "observations")


def test_observations_rule_suggests_normalization_unless_the_preset_has_it(monkeypatch):
    group = showing(Leaf((2,), "float32"), lambda place: 300 * place)
    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", {}))
    report = expect(group, "observations", "warn", "a network expects numbers near 1")
    assert report.train == "sfactory train fake/walk --normalize.obs true"
    given = {"normalize.obs": True}
    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", given))
    report = checked(group)
    assert levels(report)["observations"] == "ok"
    assert report.train == "sfactory train fake/walk"


def test_observations_rule_says_what_to_write_about_a_constant_leaf_of_several():
    class Constant(ConformingEnv):
        obs: ClassVar = {"obs/x": Leaf((2,), "float32"), "obs/mission": Leaf((5,), "uint8")}

        def observe(self):
            return {"obs/x": self.position, "obs/mission": np.full((self.num_envs, 5), 7, np.uint8)}

    expect(Constant, "observations", "warn", "obs/mission never changed in 150 steps; if it never does, leave it out: "
           "--env.drop obs/mission")  # fmt: skip


def test_observations_rule_passes_over_a_leaf_without_numbers():
    class Empty(ConformingEnv):
        obs: ClassVar = {"obs/x": Leaf((2,), "float32"), "obs/none": Leaf((0,), "float32")}

        def observe(self):
            return {"obs/x": self.position, "obs/none": np.zeros((self.num_envs, 0), np.float32)}

    assert "obs/none" not in sentences(checked(Empty), "observations")


RIGHT = {
    "whole numbers as floats, which are normalized": (
        Leaf((2,), "float32"),
        lambda place: np.rint(5 * place).astype(np.float32),
    ),
    "large integers, which are normalized": (Leaf((2,), "int64"), lambda place: (4000 * place).astype(np.int64)),
    "bytes": (Leaf((2,), "uint8", (0.0,), (255.0,)), lambda place: np.abs(50 * place).astype(np.uint8)),
    "a picture of bytes, channels last": (
        Leaf((40, 40, 3), "uint8", (0.0,), (255.0,)),
        lambda place: np.abs(50 * place[:, :1]).astype(np.uint8).repeat(4800, 1).reshape(-1, 40, 40, 3),
    ),
    "a picture of bytes, channels first": (
        Leaf((4, 40, 40), "uint8", (0.0,), (255.0,)),
        lambda place: np.abs(50 * place[:, :1]).astype(np.uint8).repeat(6400, 1).reshape(-1, 4, 40, 40),
    ),
    "a picture of floats up to 255": (
        Leaf((32, 32, 3), "float32", (0.0,), (255.0,)),
        lambda place: np.abs(50 * place[:, :1]).repeat(3072, 1).reshape(-1, 32, 32, 3).astype(np.float32),
    ),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_observations_rule_warns_of_nothing_that_the_network_reads_well(kind):
    leaf, look = RIGHT[kind]
    report = checked(showing(leaf, look))
    assert levels(report)["observations"] == "ok", report.text()
    assert levels(report)["network"] == "ok", report.text()


def test_observations_rule_warns_of_large_integers_without_bounds_that_are_not_normalized():
    group = showing(Leaf((2,), "int64"), lambda place: (4000 * place).astype(np.int64))
    report = checked(group, flags={"normalize.obs": RawValue("false")})
    assert "a network expects numbers near 1: --normalize.obs true" in sentences(report, "observations")


# -- the network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["none", "gru"])
@pytest.mark.parametrize(
    "action",
    [
        ActionLeaf((), "int64", "discrete", (2,)),
        ActionLeaf((3,), "int64", "discrete", (2, 3, 4)),
        ActionLeaf((2,), "float32", "box", (2,), (-1.0, -1.0), (1.0, 1.0)),
    ],
)
def test_network_rule_acts_and_trains_with_every_kind_of_action(action, core):
    class Other(ConformingEnv):
        actions: ClassVar = {"action": action}

        def step(self, action):
            return super().step({"action": np.zeros(self.num_envs)})

    flags = {"model.core": RawValue(core), "model.separate": RawValue("false"), "normalize.reward": RawValue("true")}
    report = checked(Other, flags=flags)
    assert levels(report)["network"] == "ok", report.text()
    assert "weights; it acts, and two updates on this data are finite" in sentences(report, "network")


class OfTheBatch(nn.Module):
    """An encoder whose features of a row depend on the other rows."""

    def __init__(self, shape, *, hidden, activation):
        super().__init__()
        self.out_size = 8
        self.layer = nn.Linear(torch.Size(shape).numel(), 8)

    def forward(self, obs):
        x = self.layer(obs.float().flatten(1))
        return x - x.mean(0)


def test_network_rule_compares_a_network_of_the_users_own_with_itself():
    """Both updates on the data are finite, and `train` would refuse it."""
    report = checked(ConformingEnv, flags={"model.encoder": RawValue(f"{__name__}:OfTheBatch")})
    assert levels(report)["network"] == "bad"
    assert "other numbers for the same observation when other rows are in the batch" in sentences(report, "network")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            {"model.encoder": "no_such_file:Net"},
            "the network cannot be trained: model.encoder no_such_file:Net: ModuleNotFoundError: No module named",
        ),
        ({"model.squash": "true"}, "cannot be trained: fake/walk: model.squash is for continuous actions"),
        ({"optim.lr": "9e18"}, "a loss or gradient is not finite"),
    ],
)
def test_network_rule_reports_what_cannot_be_trained(flags, text):
    report = checked(ConformingEnv, flags={name: RawValue(value) for name, value in flags.items()})
    assert levels(report)["network"] == "bad"
    assert text in sentences(report, "network")
    assert report.bad


def test_network_rule_asks_for_an_encoder_where_the_shape_does_not_decide():
    group = showing(
        Leaf((40, 40, 40), "float32", (0.0,), (1.0,)), lambda place: np.zeros((len(place), 40, 40, 40), "f")
    )
    report = checked(group, steps=3)
    assert "set --model.encoder" in sentences(report, "network")
    assert report.bad
    assert report.reading == ()
    report = checked(group, steps=3, flags={"model.encoder": RawValue("mlp")})
    assert levels(report)["network"] == "ok"


def paying(reward):
    """A ConformingEnv with other rewards, and episodes reported accordingly."""

    class Paid(ConformingEnv):
        def change(self, step):
            step.reward[...] = np.where(step.valid, reward(step), 0)
            return step

    return Paid


def test_rewards_rule_suggests_normalization_unless_the_preset_has_it(monkeypatch):
    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", {}))
    report = expect(paying(lambda step: 50 * step.obs["obs"][:, 0]), "rewards", "warn", "; large")
    assert report.train.endswith("--normalize.reward true")
    given = {"normalize.reward": "true"}
    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", given))
    assert levels(checked(paying(lambda step: 50 * step.obs["obs"][:, 0])))["rewards"] == "ok"


def test_rewards_rule_suggests_clipping_for_image_observations(monkeypatch):
    class Pixels(ConformingEnv):
        obs: ClassVar = {"obs": Leaf((1, 40, 40), "uint8")}

        def observe(self):
            return {"obs": np.abs(50 * self.position[:, :1]).astype(np.uint8).repeat(1600, 1).reshape(-1, 1, 40, 40)}

        def change(self, step):
            step.reward[step.valid] *= 50
            return step

    monkeypatch.setattr(check_env, "nearest", lambda *a: (["sfactory", "train", "fake/walk"], "nothing", {}))
    report = expect(Pixels, "rewards", "warn", "; large")
    assert report.train.endswith("--env.reward-clip 1")


def test_rewards_rule_warns_if_there_is_no_reward():
    expect(paying(lambda step: 0), "rewards", "warn", "no reward in")


def test_rewards_rule_uses_valid_steps_only():
    group = paying(lambda step: np.where(np.arange(4) == 0, 3.0, 1.0))
    assert "1 to 3, mean 1.5, std 0.866, 100% not zero" in sentences(checked(group, steps=2), "rewards")


# -- seeds and speed -----------------------------------------------------------------------------------------


def test_seeds_rule_warns_if_the_same_seeds_differ():
    class Entropy(ConformingEnv):
        def __init__(self, num_envs, seeds):
            super().__init__(num_envs, np.random.SeedSequence().spawn(num_envs))

    expect(Entropy, "seeds", "warn", "the same seeds and actions give another trajectory after 0 steps")


def test_seeds_rule_accepts_a_deterministic_environment():
    class Same(ConformingEnv):
        def __init__(self, num_envs, seeds):
            super().__init__(num_envs, range(num_envs))

    report = checked(Same)
    assert sentences(report, "seeds") == "deterministic: other seeds change nothing"
    assert levels(report)["seeds"] == "ok"


def test_first_difference_of_two_rollouts():
    a, b, c = (record(ConformingEnv(2, seeds), 30, 9.0, seed=0) for seeds in ([1, 2], [1, 2], [1, 3]))
    assert first_difference(a, b) is None
    assert first_difference(a, c) == 0
    for name in COLUMNS:
        changed = record(ConformingEnv(2, [1, 2]), 30, 9.0, seed=0)
        getattr(changed, name)[7, 1] = 1 - getattr(changed, name)[7, 1]
        assert first_difference(a, changed) == 8
    assert first_difference(a, record(ConformingEnv(2, [1, 2]), 5, 9.0, seed=0)) is None  # as far as both go


def test_speed_rule_reports_steps_per_second_and_reset_time(monkeypatch):
    """A fake clock that advances by 1 ms per step and 5 ms per reset."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(env_rules, "SLOW_RESETS", 0.3)

    class Timed(ConformingEnv):
        reset_s = 0.005

        def change(self, step):
            now[0] += 0.001 * step.valid.mean() + self.reset_s * (~step.valid).sum()
            return step

    report = checked(Timed, seconds=99.0)
    assert "a reset takes 5 ms" in sentences(report, "speed")
    assert levels(report)["speed"] == "warn"

    class Quick(Timed):
        reset_s = 0.00025

    report = checked(Quick, seconds=99.0)
    assert levels(report)["speed"] == "ok"
    assert "a reset takes 0.25 ms" in sentences(report, "speed")
    assert report.steps_per_second == pytest.approx(4000 * report.steps / 600)  # a reset here takes as long as a step


def test_check_steps_for_the_given_seconds_only(monkeypatch):
    monkeypatch.setattr(check_env, "network", lambda *args: [])  # it takes its own time
    report = check("faults/count", {"slow_step": 0.02}, seconds=0.2)
    assert 2 <= report.steps <= 44, "of 20 ms or more, in 0.2 s and twice a quarter of it"


def test_check_closes_its_groups():
    groups = []

    def make(num_envs, seeds):
        groups.append(ConformingEnv(num_envs, seeds))
        return groups[-1]

    checked(make)
    assert len(groups) == 3
    assert all(group.closed for group in groups)


@pytest.mark.parametrize(
    ("leaf", "scale", "flags", "level"),
    [
        (Leaf((2,), "int64", (0.0,), (9.0,)), 5000, {"normalize.obs": RawValue("false")}, "warn"),
        (Leaf((2,), "int64", (0.0,), (9.0,)), 9, {"normalize.obs": RawValue("false")}, "ok"),
        (Leaf((2,), "int64", (0.0,), (9.0,)), 50, {}, "ok"),  # normalized: bounds do not matter
        (Leaf((24, 24, 3), "float32", (0.0,), (1.0,)), 255, {}, "warn"),
    ],
)
def test_numbers_outside_the_bounds_that_scale_them_are_warned_about(leaf, scale, flags, level):
    class Outside(ConformingEnv):
        obs: ClassVar = {"obs": leaf}

        def observe(self):
            drawn = np.random.default_rng(self.calls).random((self.num_envs, *leaf.shape))
            return {"obs": (scale * drawn).astype(leaf.dtype)}

    report = checked(Outside, flags=flags)
    assert levels(report)["observations"] == level
    assert ("outside the bounds of its space" in sentences(report, "observations")) == (level == "warn")


def numbers_between(low, high):
    class Box(ConformingEnv):
        actions: ClassVar = {"action": ActionLeaf((len(low),), "float32", "box", (len(low),), low, high)}

        def step(self, action):
            return super().step({"action": np.zeros(self.num_envs)})

    return Box


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        ((10.0,), (20.0,), "100% of them become a bound of 10 to 20, so that it can hardly learn"),
        ((-1.0, -0.01), (1.0, 0.01), "99% of them become a bound of -0.01 to 0.01"),
        ((-1.0, -1000.0), (1.0, 1000.0), "(standard deviation 1), a small part of -1000 to 1000: --model.squash true"),
    ],
)
def test_actions_rule_warns_of_bounds_that_a_new_policy_misses(low, high, text):
    report = checked(numbers_between(low, high))
    assert levels(report)["actions"] == "warn"
    assert text in sentences(report, "actions")
    assert report.train.endswith("--model.squash true")
    assert levels(report)["network"] == "ok"
    squashed = checked(numbers_between(low, high), flags={"model.squash": RawValue("true")})
    assert "actions" not in levels(squashed)


def test_actions_rule_does_not_suggest_to_squash_into_bounds_that_are_not_finite():
    report = checked(numbers_between((10.0,), (np.inf,)))
    assert "100% of them become a bound of 10 to inf" in sentences(report, "actions")
    assert "let the environment take numbers near 0 and scale them itself" in sentences(report, "actions")
    assert "squash" not in report.train


@pytest.mark.parametrize(
    ("low", "high"), [((-2.0,), (2.0,)), ((-0.4,), (0.4,)), ((0.0,), (1.0,)), ((-np.inf,), (np.inf,)), ((3.0,), (3.0,))]
)
def test_actions_rule_accepts_bounds_that_a_new_policy_reaches(low, high):
    assert "actions" not in levels(checked(numbers_between(low, high)))


def test_actions_rule_names_a_mask_that_is_not_read_as_one():
    class Masked(ConformingEnv):
        obs: ClassVar = {"obs/x": Leaf((2,), "float32"), "obs/legal_moves": Leaf((2,), "bool")}

        def observe(self):
            return {"obs/x": self.position, "obs/legal_moves": self.position > 0}

    report = checked(Masked)
    assert "obs/legal_moves has one number per choice of the action" in sentences(report, "actions")
    Masked.obs = {"obs/x": Leaf((2,), "float32"), "obs/legal_moves": Leaf((2, 1), "bool")}
    Masked.observe = lambda self: {"obs/x": self.position, "obs/legal_moves": (self.position > 0)[..., None]}
    assert "actions" not in levels(checked(Masked))


@pytest.mark.parametrize(
    ("offset", "dtype", "warned"),
    [(1.7e9, "float32", True), (10**9, "int64", True), (1e6, "float32", False), (0, "float32", False)],
)
def test_observations_rule_warns_of_changes_that_float32_does_not_hold(offset, dtype, warned):
    group = showing(Leaf((1,), dtype), lambda place: (np.floor(place[:, :1]) + offset).astype(dtype))
    assert ("which the network reads as float32 in steps of" in sentences(checked(group), "observations")) == warned


class Single(gymnasium.Env):
    observation_space, action_space = spaces.Box(-9, 9, (2,), np.float32), spaces.Discrete(2)
    info: ClassVar = {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), self.info

    def step(self, action):
        self.t += 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, False, self.t > 5, self.info


class InfoMask(Single):
    info: ClassVar = {"action_mask": np.ones(2, np.int8)}


class MethodMask(Single):
    def action_masks(self):
        return np.ones(2, bool)


class ObsMask(InfoMask):
    observation_space = spaces.Dict(x=Single.observation_space, action_mask=spaces.MultiBinary(2))

    def reset(self, **arguments):
        obs, info = super().reset(**arguments)
        return {"x": obs, "action_mask": np.ones(2, np.int8)}, info

    def step(self, action):
        obs, *rest = super().step(action)
        return {"x": obs, "action_mask": np.ones(2, np.int8)}, *rest


def check_single(kind):
    return check(
        "my_env:MyEnv", make=lambda num_envs, seeds: EnvGroup(kind, num_envs, seeds, name="my_env:MyEnv"), steps=60
    )


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (InfoMask, "the info of reset() has an action_mask, which is not read"),
        (MethodMask, "the environment has a method action_masks, which is not read"),
        (ObsMask, ""),
        (Single, ""),
    ],
)
def test_actions_rule_names_a_mask_that_is_not_in_the_observation(kind, text):
    report = check_single(kind)
    assert not report.bad, report.text()
    assert text in sentences(report, "actions")
    assert ("actions" in levels(report)) == bool(text)


def test_network_rule_trains_whatever_the_environment_does_to_torch():
    import torch

    class Spoils(ConformingEnv):
        def reset(self):
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            return super().reset()

    try:
        report = checked(Spoils, flags={"model.core": RawValue("gru"), "model.separate": RawValue("false")})
        assert torch.get_default_dtype() == torch.float64  # what the environment set is left as it is
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
    assert levels(report)["network"] == "ok", report.text()
