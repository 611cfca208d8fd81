"""What `check-env` must notice: every rule is seen silent where it is kept, and loud where it is broken.

`Walk` keeps them all. Each broken environment below differs from it in one thing.
"""

import importlib.util
import json
import math
import time
from typing import ClassVar

import numpy as np
import pytest

from sfactory import check_env
from sfactory.check_env import Report, check, nearest, parting
from sfactory.env_trace import COLUMNS, random_action, record
from sfactory.envs import ActionLeaf, EnvError, EnvFault, EnvSpec, Leaf, Step, Tally

LIMIT = 12
RULES = {"data", "autoreset", "final observation", "time limit", "observations", "rewards", "speed", "seeds"}


class Walk:
    """E walkers on a line, who fall off at +-2 (reward -1) or are truncated after LIMIT steps; next-step autoreset."""

    actions: ClassVar = {"action": ActionLeaf((), "int64", "discrete", (2,))}
    obs: ClassVar = {"obs": Leaf((2,), "float32")}
    limit = LIMIT
    mask = ""

    def __init__(self, num_envs, seeds):
        self.num_envs, self.calls, self.closed = num_envs, 0, False
        self.draws = [np.random.default_rng(seed) for seed in seeds]
        self.spec = EnvSpec("fake/walk", self.obs, self.actions, max_episode_steps=self.limit, mask=self.mask)
        self.place, self.over = np.zeros((num_envs, 2), np.float32), np.zeros(num_envs, bool)
        self.tally, self.begun = Tally(num_envs), None

    def begin(self, env):
        self.place[env] = 0.1 * self.draws[env].standard_normal(2)

    def reset(self):
        for env in range(self.num_envs):
            self.begin(env)
        self.begun = self.place.copy()
        return self.see()

    def see(self):
        return {"obs": self.place}  # the same array every time, as a group may

    def step(self, action):
        valid = ~self.over
        for env in range(self.num_envs):
            if self.over[env]:
                self.begin(env)
                self.begun[env] = self.place[env]
            else:
                self.place[env] += 0.5 * self.draws[env].standard_normal(2) + 0.2 * (2 * action["action"][env] - 1)
        fell = valid & (abs(self.place[:, 0]) > 2)
        reward = np.where(valid, np.where(fell, -1.0, 0.1), 0.0).astype(np.float32)
        self.tally.count(reward, valid)
        late = valid & (self.tally.lengths >= LIMIT) & ~fell
        self.over = fell | late
        episodes = self.tally.end(np.flatnonzero(self.over).tolist())
        self.calls += 1
        return self.spoil(Step(self.see(), reward, fell, late, valid, ~valid, episodes, ()))

    def spoil(self, step):
        return step

    def close(self):
        self.closed = True


def levels(report):
    """Title -> the worst that was said."""
    found = {}
    for level, title, _ in report.findings:
        found[title] = max(found.get(title, "ok"), level, key=["ok", "warn", "bad"].index)
    return found


def said(report, title):
    return " | ".join(sentence for _, about, sentence in report.findings if about == title)


def checked(group, name="faults/walk", **options):
    return check(name, make=group, steps=options.pop("steps", 150), **options)


def expect(group, title, level, words, **options):
    """One rule speaks, in these words, and no other one says anything worse than before."""
    report = checked(group, **options)
    assert levels(report)[title] == level, report.text()
    assert words in said(report, title)
    others = {about for about, worst in levels(report).items() if worst != "ok"} - {title}
    assert not others, report.text()
    assert report.bad == (level == "bad")
    return report


@pytest.fixture(autouse=True)
def _no_slow_machine(monkeypatch):
    """How long a reset takes is measured; whether that is told rightly is tested with a clock of our own."""
    monkeypatch.setattr(check_env, "SLOW_RESETS", 2.0)


def test_an_environment_that_keeps_every_rule_hears_nothing():
    report = checked(Walk)
    assert levels(report) == dict.fromkeys(RULES, "ok"), report.text()
    assert not report.bad
    assert "truncated, after" in said(report, "time limit")
    assert "the limit is 12" in said(report, "time limit")


def test_a_group_may_hand_out_the_same_arrays_every_time():
    class Reuses(Walk):
        def spoil(self, step):
            arrays = self.__dict__.setdefault("arrays", {name: getattr(step, name).copy() for name in COLUMNS})
            for name, array in arrays.items():
                array[:] = getattr(step, name)
            return step._replace(**arrays)

    assert checked(Reuses).findings[:-2] == checked(Walk).findings[:-2]  # all but speed, and seeds behind it
    assert not checked(Reuses).bad


# -- autoreset -----------------------------------------------------------------------------------------------


def rows_after_an_end(change):
    """A Walk whose reset rows go through `change(step, env)`."""

    class Changed(Walk):
        def spoil(self, step):
            for env in np.flatnonzero(~step.valid):
                change(step, env)
            return step

    return Changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, e: (s.valid.__setitem__(e, True), s.first.__setitem__(e, False)), "it just goes on"),
        (lambda s, e: s.valid.__setitem__(e, True), "first on a valid row where no life was lost"),
        (lambda s, e: s.first.__setitem__(e, False), "a reset row that is not first"),
        (lambda s, e: s.reward.__setitem__(e, 1.0), "a reset row with a reward"),
        (lambda s, e: s.terminated.__setitem__(e, True), "a reset row that ends an episode"),
    ],
)
def test_a_reset_row_that_is_none_is_bad(change, words):
    report = checked(rows_after_an_end(change))
    assert levels(report)["autoreset"] == "bad"
    assert words in said(report, "autoreset")
    assert "first at step" in said(report, "autoreset")


@pytest.mark.parametrize(
    ("flagged", "words"),
    [(True, "first at the end of a whole game, which does not go on"), (False, "it just goes on: ")],
)
def test_same_step_autoreset_is_bad(flagged, words):
    class SameStep(Walk):
        """Resets within the step that ends an episode."""

        def spoil(self, step):
            ends, self.over = self.over, np.zeros(self.num_envs, bool)
            for env in np.flatnonzero(ends):
                self.begin(env)
            return step._replace(obs=self.see(), first=ends & flagged)

    expect(SameStep, "autoreset", "bad", words)


def test_two_reset_rows_in_a_row_are_bad():
    class Twice(Walk):
        again = np.zeros(check_env.ENVS, bool)

        def step(self, action):
            self.over |= self.again
            reset, self.again = self.over & ~self.again, None
            step = super().step(action)
            self.again = reset
            return step

    expect(Twice, "autoreset", "bad", "a reset row where no episode had ended (two in a row?)")


def test_first_where_nothing_begins_is_bad():
    class Stutter(Walk):
        def spoil(self, step):
            if self.calls == 1:
                step.first[1] = True
            return step

    report = expect(Stutter, "autoreset", "bad", "first on a valid row where no life was lost: 1 times")
    assert "first at step 0 of environment 1" in said(report, "autoreset")


def test_a_lost_life_needs_no_reset_row_but_the_end_of_a_game_does():
    class Lives(Walk):
        """Every fifth step a life is lost: terminated and first, no Episode, and an ordinary row goes on."""

        def spoil(self, step):
            lost = step.valid & ~self.over & (self.calls % 5 == 0)
            return step._replace(terminated=step.terminated | lost, first=step.first | lost)

    report = checked(Lives)
    assert levels(report) == dict.fromkeys(RULES, "ok"), report.text()
    assert "lost lives, after which the game went on" in said(report, "autoreset")
    assert " to 5 steps" in said(report, "time limit")  # lives, not games


def test_what_never_ended_was_not_checked():
    report = expect(Walk, "autoreset", "warn", "no episode ended in 1 steps: not checked", steps=1)
    assert "the limit" not in said(report, "autoreset")
    assert "12 steps; no episode ended" in said(report, "time limit")


# -- the last observation ------------------------------------------------------------------------------------


class ShowsTheReset(Walk):
    """The row that ends an episode shows the observation of the reset that follows."""

    share = 1.0

    def begin(self, env):
        if not getattr(self, "ahead", {}).pop(env, False):
            super().begin(env)

    def spoil(self, step):
        self.ahead = getattr(self, "ahead", {})
        for env in np.flatnonzero(self.over):
            if self.draws[env].random() < self.share:
                self.begin(env)
                self.ahead[env] = True
        return step


def test_the_reset_observation_at_the_end_is_bad():
    expect(ShowsTheReset, "final observation", "bad", "this returns the reset observation at the end")


def test_now_and_then_it_is_a_warning():
    class Sometimes(ShowsTheReset):
        share = 0.5

    expect(Sometimes, "final observation", "warn", "ends show what the reset row behind them shows")

    class Rarely(ShowsTheReset):  # a game of few states, by chance
        share = 0.02

    assert not checked(Rarely, steps=600).bad
    assert levels(checked(Rarely, steps=600))["final observation"] == "ok"


# -- time limits ---------------------------------------------------------------------------------------------


def clocked(step):
    """Truncations become terminations."""
    return step._replace(terminated=step.terminated | step.truncated, truncated=np.zeros_like(step.truncated))


def test_a_time_limit_reported_as_termination_is_bad_where_the_limit_is_known():
    class Clocked(Walk):
        def spoil(self, step):
            return clocked(step)

    expect(Clocked, "time limit", "bad", "episodes are terminated at exactly the limit, 12 steps")


def test_truncated_and_terminated_at_once_is_terminated():
    class Both(Walk):
        def spoil(self, step):
            return step._replace(terminated=step.terminated | step.truncated)

    expect(Both, "time limit", "bad", "episodes are terminated at exactly the limit")


def test_episodes_of_one_length_that_all_terminate_look_like_a_clock():
    report = check("faults/count", {"length": 7}, steps=200)
    assert levels(report)["time limit"] == "warn"
    assert "terminated after exactly 7 steps" in said(report, "time limit")
    assert levels(check("faults/clock", {"length": 7}, steps=200))["time limit"] == "ok"


def test_no_end_and_no_limit_is_a_warning_that_names_the_way_out():
    endless = check("faults/count", {"length": 10**6}, steps=50)
    assert "no time limit seen; episodes may never end: an evaluation needs --max-steps" in said(endless, "time limit")
    assert levels(check("faults/clock", {"length": 10**6}, steps=50))["time limit"] == "ok"


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


# -- actions -------------------------------------------------------------------------------------------------


def test_random_actions_are_legal_and_use_all_there_is():
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


def test_random_actions_obey_the_mask():
    class Masked(Walk):
        obs: ClassVar = {"obs/action_mask": Leaf((2,), "int64"), "obs/x": Leaf((2,), "float32")}
        mask = "obs/action_mask"

        def see(self):
            return {"obs/action_mask": np.tile([0, 1], (self.num_envs, 1)), "obs/x": self.place}

        def step(self, action):
            assert (action["action"] == 1).all()
            return super().step(action)

    report = checked(Masked)
    assert not report.bad
    assert levels(report)["observations"] == "ok"  # a mask may stay what it is
    assert ", the mask" in report.text()


# -- what to type, and how it is told ------------------------------------------------------------------------


def spec_of(shape, dtype="float32"):
    return EnvSpec("x", {"obs": Leaf(shape, dtype)}, Walk.actions)


def test_an_environment_with_a_preset_is_trained_with_it():
    words, why, _ = nearest("gymnasium/CartPole-v1", spec_of((4,)))
    assert (words, why) == (["sfactory", "train", "classic/cartpole"], "its preset")
    assert nearest("minatar/breakout", spec_of((10, 10, 4)), "minatar/breakout")[0][-1] == "minatar/breakout"


def test_a_family_with_defaults_uses_them_for_what_they_are_made_for():
    words, why, given = nearest("gymnasium/MountainCar-v0", spec_of((2,)))
    assert words == ["sfactory", "train", "gymnasium/MountainCar-v0"]
    assert why == "the defaults of gymnasium"
    assert given["env.name"] == "gymnasium/MountainCar-v0"
    assert given["normalize.obs"] is True


def test_other_environments_use_the_settings_of_what_looks_like_them():
    words, why, given = nearest("faults/count", spec_of((3,)))
    assert words[:4] == ["sfactory", "train", "faults/count", "--config"]
    assert words[4].endswith("gymnasium/default.toml")
    assert why == "the nearest there are, those of gymnasium"
    assert given["env.name"] == "faults/count"  # the target, not the file's
    words, _, _ = nearest("gymnasium/Grid-v0", spec_of((7, 7, 3), "uint8"))
    assert words[4].endswith("minatar/default.toml")


def test_settings_that_were_typed_are_in_the_command_that_is_suggested():
    settings = {"max_episode_steps": 50, "protocol": "two words"}
    report = check("minatar/breakout", settings, steps=5, make=Walk)
    assert report.train.startswith("sfactory train minatar/breakout ")
    assert "--env.settings.max_episode_steps=50" in report.train
    assert "'--env.protocol=two words'" in report.train


def test_the_report_as_text_and_as_json():
    class Boxed(Walk):
        actions: ClassVar = {"action": ActionLeaf((1,), "float32", "box", (1,), (-math.inf,), (2.0,))}

        def step(self, action):
            return super().step({"action": action["action"][:, 0] > 0})

    report = checked(Boxed)
    assert isinstance(report, Report)
    text = report.text()
    for words in ("float32 [2]", "1 numbers from -inf to 2", "at most 12 steps", "frame skip", "protocol", "mask"):
        assert words in text or words == "mask"
    assert text.splitlines()[-1].startswith("sfactory train faults/walk")
    assert max(map(len, text.splitlines()[:-1])) < 120
    told = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert told["bad"] is False
    assert {finding["title"] for finding in told["findings"]} == RULES
    assert told["spec"]["actions"]["action"]["low"] == [None]
    assert told["steps"] == report.steps


# -- the real ones -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "needs", "preset"),
    [
        ("gymnasium/CartPole-v1", "gymnasium", "classic/cartpole"),
        ("gymnasium/Pendulum-v1", "gymnasium", "classic/pendulum"),
        ("minatar/breakout", "minatar", "minatar/breakout"),
    ],
)
def test_environments_that_people_train_on_keep_every_rule(name, needs, preset):
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    report = check(name, steps=400)
    assert levels(report) == dict.fromkeys(RULES, "ok"), report.text()
    assert report.train == f"sfactory train {preset}"
    assert "games return" in said(report, "rewards")


@pytest.mark.parametrize(("game", "steps"), [("pong", 850), ("breakout", 200)])  # a whole game each, with its lives
def test_atari_keeps_every_rule(game, steps, monkeypatch):
    if importlib.util.find_spec("ale_py") is None:
        pytest.skip("ale-py is not installed")
    monkeypatch.setattr(check_env, "ENVS", 1)
    monkeypatch.setattr(check_env, "REPLAY", 50)
    report = check(f"atari/{game}", steps=steps, seconds=30.0, seed=3)
    assert levels(report) == dict.fromkeys(RULES, "ok"), report.text()
    assert ("lost lives" in said(report, "autoreset")) == (game == "breakout")
