"""Rules of `check-env` on rows: autoreset, final observations and time limits, each passed and violated."""

import numpy as np
import pytest
from conforming_env import RULES, ConformingEnv, checked, expect, levels, sentences

from sfactory.tools import check_env
from sfactory.tools.check_env import check
from sfactory.tools.random_rollout import COLUMNS


def test_conforming_environment_passes_every_rule():
    report = checked(ConformingEnv)
    assert levels(report) == dict.fromkeys(RULES, "ok"), report.text()
    assert not report.bad
    assert "truncated, after" in sentences(report, "time limit")
    assert "the limit is 12" in sentences(report, "time limit")


def test_check_accepts_groups_that_reuse_their_arrays():
    class Reuses(ConformingEnv):
        def change(self, step):
            arrays = self.__dict__.setdefault("arrays", {name: getattr(step, name).copy() for name in COLUMNS})
            for name, array in arrays.items():
                array[:] = getattr(step, name)
            return step._replace(**arrays)

    found, expected = (
        [one for one in checked(group).findings if one.title != "speed"] for group in (Reuses, ConformingEnv)
    )
    assert found == expected
    assert not checked(Reuses).bad


# -- autoreset -----------------------------------------------------------------------------------------------


def rows_after_an_end(change):
    """A ConformingEnv whose reset rows go through `change(step, env)`."""

    class Changed(ConformingEnv):
        def change(self, step):
            for env in np.flatnonzero(~step.valid):
                change(step, env)
            return step

    return Changed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda s, e: (s.valid.__setitem__(e, True), s.first.__setitem__(e, False)),
            "no reset row after the end of an episode",
        ),
        (lambda s, e: s.valid.__setitem__(e, True), "first on a valid row where no life was lost"),
        (lambda s, e: s.first.__setitem__(e, False), "a reset row without first"),
        (lambda s, e: s.reward.__setitem__(e, 1.0), "a reset row with a reward"),
        (lambda s, e: s.terminated.__setitem__(e, True), "a reset row that ends an episode"),
    ],
)
def test_autoreset_rule_rejects_wrong_reset_rows(change, text):
    report = checked(rows_after_an_end(change))
    assert levels(report)["autoreset"] == "bad"
    assert text in sentences(report, "autoreset")
    assert "first at step" in sentences(report, "autoreset")


@pytest.mark.parametrize(
    ("flagged", "text"),
    [(True, "first on the last row of an episode"), (False, "no reset row after the end of an episode: ")],
)
def test_autoreset_rule_rejects_same_step_autoreset(flagged, text):
    class SameStep(ConformingEnv):
        """Resets within the step that ends an episode."""

        def change(self, step):
            ends, self.over = self.over, np.zeros(self.num_envs, bool)
            for env in np.flatnonzero(ends):
                self.begin_episode(env)
            return step._replace(obs=self.observe(), first=ends & flagged)

    expect(SameStep, "autoreset", "bad", text)


def test_autoreset_rule_rejects_two_reset_rows_in_a_row():
    class Twice(ConformingEnv):
        again = np.zeros(check_env.ENVS, bool)

        def step(self, action):
            self.over |= self.again
            reset, self.again = self.over & ~self.again, None
            step = super().step(action)
            self.again = reset
            return step

    expect(Twice, "autoreset", "bad", "a reset row without an end of episode before it (two in a row?)")


def test_autoreset_rule_rejects_first_in_the_middle_of_an_episode():
    class Stutter(ConformingEnv):
        def change(self, step):
            if self.calls == 1:
                step.first[1] = True
            return step

    report = expect(Stutter, "autoreset", "bad", "first on a valid row where no life was lost: 1 times")
    assert "first at step 0 of environment 1" in sentences(report, "autoreset")


def test_autoreset_rule_accepts_lost_lives_without_reset_rows():
    class Lives(ConformingEnv):
        """A life is lost every fifth step: terminated and first, no Episode, followed by an ordinary row."""

        def change(self, step):
            lost = step.valid & ~self.over & (self.calls % 5 == 0)
            return step._replace(terminated=step.terminated | lost, first=step.first | lost)

    report = checked(Lives)
    assert levels(report) == dict.fromkeys(RULES, "ok"), report.text()
    assert "lost lives, after which the game continued" in sentences(report, "autoreset")
    assert " to 5 steps" in sentences(report, "time limit")  # lives, not whole episodes


def test_autoreset_rule_warns_if_no_episode_ended():
    report = expect(ConformingEnv, "autoreset", "warn", "no episode ended in 1 steps: not checked", steps=1)
    assert "the limit" not in sentences(report, "autoreset")
    assert "12 steps; no episode ended" in sentences(report, "time limit")


# -- the last observation ------------------------------------------------------------------------------------


class ShowsTheReset(ConformingEnv):
    """The last row of an episode holds the observation of the reset that follows."""

    share = 1.0

    def begin_episode(self, env):
        if not getattr(self, "ahead", {}).pop(env, False):
            super().begin_episode(env)

    def change(self, step):
        self.ahead = getattr(self, "ahead", {})
        for env in np.flatnonzero(self.over):
            if self.generators[env].random() < self.share:
                self.begin_episode(env)
                self.ahead[env] = True
        return step


def test_final_observation_rule_rejects_the_reset_observation():
    expect(ShowsTheReset, "final observation", "bad", "the reset observation is returned too early")


def test_final_observation_rule_warns_if_only_some_are_equal():
    class Sometimes(ShowsTheReset):
        share = 0.5

    expect(Sometimes, "final observation", "warn", "final observations equal the reset row after them")

    class Rarely(ShowsTheReset):  # few states, equal by chance
        share = 0.02

    assert not checked(Rarely, steps=600).bad
    assert levels(checked(Rarely, steps=600))["final observation"] == "ok"


# -- time limits ---------------------------------------------------------------------------------------------


def clocked(step):
    """Truncations become terminations."""
    return step._replace(terminated=step.terminated | step.truncated, truncated=np.zeros_like(step.truncated))


def test_time_limit_rule_rejects_termination_at_a_known_limit():
    class Clocked(ConformingEnv):
        def change(self, step):
            return clocked(step)

    expect(Clocked, "time limit", "bad", "episodes are terminated at exactly the limit, 12 steps")


def test_time_limit_rule_counts_both_flags_as_terminated():
    class Both(ConformingEnv):
        def change(self, step):
            return step._replace(terminated=step.terminated | step.truncated)

    expect(Both, "time limit", "bad", "episodes are terminated at exactly the limit")


def test_time_limit_rule_warns_about_terminations_of_equal_length():
    report = check("faults/count", {"length": 7}, steps=200)
    assert levels(report)["time limit"] == "warn"
    assert "terminated after exactly 7 steps" in sentences(report, "time limit")
    assert levels(check("faults/clock", {"length": 7}, steps=200))["time limit"] == "ok"


def test_time_limit_rule_warns_if_no_episode_ends_without_a_limit():
    endless = check("faults/count", {"length": 10**6}, steps=50)
    assert "no time limit found; episodes may never end, so an evaluation needs --max-steps" in sentences(
        endless, "time limit"
    )
    assert levels(check("faults/clock", {"length": 10**6}, steps=50))["time limit"] == "ok"
