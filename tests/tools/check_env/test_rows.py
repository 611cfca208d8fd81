"""What `check-env` must notice of rows: every rule is seen silent where it is kept, and loud where it is broken."""

import numpy as np
import pytest
from conforming_env import RULES, Walk, checked, expect, levels, said

from sfactory.tools import check_env
from sfactory.tools.check_env import check
from sfactory.tools.env_trace import COLUMNS


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
