"""Faults family, which other tests use: correct counters and exactly one failure."""

import subprocess
import sys
import time

import numpy as np
import pytest

from sfactory.envs import EnvError, make_group

NOTHING = {"action": np.zeros(3, int)}


def rows(group, steps):
    """Return observations [steps + 1, E, 3] and the steps."""
    obs, taken = [group.reset()["obs"].copy()], []
    for _ in range(steps):
        taken.append(group.step(NOTHING))
        obs.append(taken[-1].obs["obs"].copy())
    return np.array(obs), taken


@pytest.mark.parametrize(("name", "terminates"), [("faults/count", True), ("faults/clock", False)])
def test_faults_group_counts_environment_step_and_episode(name, terminates):
    obs, taken = rows(make_group(name, 3, [0, 1, 2], {"length": 2}), 5)
    assert (obs[:, :, 0] == [0, 1, 2]).all()
    assert obs[:, 1, 1].tolist() == [0, 1, 2, 2, 3, 4]  # the reset step is not counted
    assert obs[:, 1, 2].tolist() == [0, 0, 0, 1, 1, 1]
    assert [bool(s.terminated[0]) for s in taken] == [False, terminates, False, False, terminates]
    assert [bool(s.truncated[0]) for s in taken] == [False, not terminates, False, False, not terminates]
    assert [bool(s.valid[0]) for s in taken] == [True, True, False, True, True]
    assert [s.reward[0] for s in taken] == [1, 2, 0, 1, 2]
    assert [len(s.episodes) for s in taken] == [0, 3, 0, 0, 3]
    assert taken[1].episodes[2] == (2, 3.0, 2)


@pytest.mark.parametrize("knob", ["raise_at", "nan_obs_at", "nan_reward_at", "bad_shape_at"])
@pytest.mark.parametrize("at", [1, 2, 3])  # step 2 is a reset step
def test_faults_setting_makes_one_row_of_one_environment_fail(knob, at):
    obs, taken = rows(make_group("faults/count", 3, [0, 1, 2], {"length": 2, "env": 1, knob: at}), 6)
    assert [len(step.faults) for step in taken] == [int(t == at) for t in range(6)]
    assert taken[at].faults[0].env == 1
    assert not taken[at].valid[1]
    assert not (taken[at].terminated | taken[at].truncated)[1]
    assert taken[at].reward[1] == 0
    assert taken[at].first[1]
    assert taken[at + 1].valid[1]
    assert np.isfinite(obs).all()
    assert [bool(step.valid[0]) for step in taken] == [True, True, False, True, True, False]
    assert np.diff(obs[at : at + 2, 1, 2]) == 1  # the next episode begins here, once


def test_faults_marker_limits_a_fault_to_once_in_all_processes(tmp_path):
    settings = {"raise_at": 1, "marker": str(tmp_path / "fired")}
    assert sum(len(step.faults) for step in rows(make_group("faults/count", 3, [0, 1, 2], settings), 3)[1]) == 1
    assert sum(len(step.faults) for step in rows(make_group("faults/count", 3, [0, 1, 2], settings), 3)[1]) == 0


@pytest.mark.parametrize(("knob", "code"), [("segv_at", -11), ("exit_at", 3), ("crash_at", 1)])
def test_faults_setting_ends_its_process(knob, code):
    program = (
        "import numpy as np; from sfactory.envs import make_group; "
        f"g = make_group('faults/clock', 1, [0], {{'{knob}': 1}}); g.reset(); "
        "[g.step({'action': np.zeros(1, int)}) for _ in range(3)]"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == code


def test_faults_group_fails_in_constructor_and_first_reset_on_request():
    with pytest.raises(EnvError, match="could not be built: ValueError: failure requested by raise_at"):
        make_group("faults/count", 1, [0], {"raise_at": -1})
    with pytest.raises(EnvError, match="failed at its first reset: ValueError: failure requested by raise_at"):
        make_group("faults/count", 1, [0], {"raise_at": -3}).reset()


def test_faults_group_reports_an_illegal_action():
    group = make_group("faults/count", 3, [0, 1, 2])
    group.reset()
    step = group.step({"action": np.array([0, 2, 1])})
    assert step.valid.tolist() == [True, False, True]


def test_faults_group_spins_for_the_processor_time_of_all_its_environments():
    group = make_group("faults/count", 3, [0, 1, 2], {"spin_us": 2000})
    group.reset()
    began = time.thread_time()
    for _ in range(5):
        group.step(NOTHING)
    assert 0.030 <= time.thread_time() - began < 0.060
