"""A watched group announces every call before it is made, and turns exceptions into faults of the environment."""

import numpy as np
import pytest

from sfactory.envs import EnvError, make_group
from sfactory.play.watched_group import NO_CLOCK, WatchedGroup


class Clock:
    def __init__(self):
        self.calls, self.inside = [], False

    def own(self):
        self.inside = False

    def build(self, environments):
        self.calls.append(f"build {environments}")
        self.inside = True

    def step(self, environments):
        self.calls.append(f"step {environments}")
        self.inside = True


class Native:
    """A group of two that does not say which environment it calls; each method raises what it is told to."""

    num_envs, spec, render_fps = 2, make_group("faults/count", 1, [0]).spec, 30

    def __init__(self, error=None):
        self.error = error

    def _call(self, *arguments):
        if self.error is not None:
            raise self.error

    reset = step = close = render = _call


def test_watched_group_announces_building_resetting_stepping_and_closing():
    clock = Clock()
    group = WatchedGroup(Native, 2, clock)
    for call, expected in [
        (group.reset, "build 2"),
        (lambda: group.step({}), "step 2"),
        (lambda: group.render(0), "step 1"),
        (group.close, "build 2"),
    ]:
        clock.calls.clear()
        call()
        assert clock.calls == [expected]
        assert not clock.inside, "the time of other code is not that of the environments"


def test_watched_group_announces_each_environment_of_a_group_that_says_which_it_is():
    """Each then has the time of one, also where it is built again in the middle of a step."""
    clock = Clock()
    group = WatchedGroup(lambda: make_group("gymnasium/Acrobot-v1", 2, [1, 2]), 2, clock)
    assert clock.calls == ["build 2", *["build 1", "build 2"] * 2], "each, and what the group does in between"
    clock.calls.clear()
    group.reset()
    assert set(clock.calls[1:]) == {"build 1"}
    clock.calls.clear()
    group.step({"action": np.zeros(2, int)})
    assert clock.calls == ["step 1"] * 3
    clock.calls.clear()
    group.close()
    assert clock.calls == ["build 2", "build 1", "build 1"], "closing is no step"


@pytest.mark.parametrize("call", ["reset", "step", "render", "close"])
def test_watched_group_reports_every_exception_as_a_fault_of_the_environment(call):
    group = WatchedGroup(lambda: Native(RuntimeError("simulator\ngone")), 2, NO_CLOCK)
    with pytest.raises(EnvError, match=rf"faults/count: {call} raised RuntimeError: simulator gone") as raised:
        getattr(group, call)(*[0] * (call in ("step", "render")))
    assert raised.value.exit_code == 6


def test_watched_group_leaves_the_errors_of_a_request_as_they_are():
    group = WatchedGroup(lambda: Native(EnvError("no video")), 2, NO_CLOCK)
    with pytest.raises(EnvError, match=r"^no video$") as raised:
        group.render(0)
    assert raised.value.exit_code == 2
