"""Runs whose folder is locked, cannot be locked, or has a run already."""

import errno
import os
from pathlib import Path

import pytest
from builders import NO_LOCKS

import sfactory
from sfactory.errors import RunBusy
from sfactory.run.lock import lock_folder

pytestmark = pytest.mark.usefixtures("forked")

TINY = {
    "run": {"mode": "lockstep", "dir": "runs/a"},
    "stop": {"env_steps": 300},
    "sampling": {"num_samplers": 1, "envs_per_group": 4, "rollout_length": 16},
    "batch": {"minibatches": 2},
    "log": {"quiet": True},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NO_LOCKS)
def test_a_run_trains_without_locks_and_its_log_says_so(tmp_path, monkeypatch, flock_fails, name):
    monkeypatch.chdir(tmp_path)
    flock_fails(name)
    assert sfactory.train("classic/cartpole", **TINY).code == 0
    assert "has no locks" in Path("runs/a/log.txt").read_text()
    assert sfactory.resume("runs/a", stop={"env_steps": 600}).code == 0


def fail_to_write(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["sfactory.run.recorder.replace_text", "sfactory.run.recorder.Board"])
@pytest.mark.parametrize("given", [{"dir": "runs/a"}, {}])
def test_a_start_that_fails_leaves_no_folder(tmp_path, monkeypatch, place, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(place, fail_to_write)
    for _ in range(2):  # the second try fails for the same reason
        with pytest.raises(OSError, match="No space left"):
            sfactory.train("classic/cartpole", **{**TINY, "run": {"mode": "lockstep", **given}})
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_never_started_over_another_one(tmp_path, monkeypatch):
    """Both chose the name in the same second, and the first one has finished when the second one opens the folder."""
    from sfactory.run import folder

    monkeypatch.chdir(tmp_path)
    names = iter(["runs/a", "runs/a", "runs/b", "runs/a"])
    monkeypatch.setattr("sfactory.api.new_run_dir", lambda *_: Path(next(names)))
    sections = {**TINY, "run": {"mode": "lockstep"}}
    assert [sfactory.train("classic/cartpole", **sections).run_dir for _ in range(2)] == ["runs/a", "runs/b"]
    monkeypatch.setattr("sfactory.api.refuse_existing", lambda _: None)  # the same with a name of the user's own
    before = Path("runs/a/status.json").read_text()
    with pytest.raises(folder.FolderTaken, match="runs/a holds a run already"):
        sfactory.train("classic/cartpole", **TINY)
    assert Path("runs/a/status.json").read_text() == before


def test_a_start_that_is_refused_leaves_the_folder_of_the_other_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sfactory.train("classic/cartpole", **TINY)
    before = sorted(path.name for path in Path("runs/a").iterdir())
    lock = lock_folder(Path("runs/a"))
    with pytest.raises(RunBusy):
        sfactory.resume("runs/a", stop={"env_steps": 600})
    os.close(lock)
    assert sorted(path.name for path in Path("runs/a").iterdir()) == before
    monkeypatch.setattr("sfactory.run.recorder.replace_text", fail_to_write)
    with pytest.raises(OSError, match="No space left"):
        sfactory.resume("runs/a", stop={"env_steps": 600})
    assert sorted(path.name for path in Path("runs/a").iterdir()) == before
