"""Run folder: a run is running while its supervisor has the lock; a folder with links is not written to."""

import os
import subprocess
import sys

import pytest

from sfactory.errors import CommandError, FileRefused
from sfactory.run.folder import (
    FolderTaken,
    locking_process,
    new_run_dir,
    refuse_links,
    refuse_run,
    require_config_file,
    supervisor_is_running,
)
from sfactory.run.lock import lock_folder
from sfactory.run.reader import natural_key, read_status, run_state


@pytest.fixture
def locked(tmp_path):
    lock = lock_folder(tmp_path)
    yield tmp_path
    os.close(lock)


def test_supervisor_is_running_while_it_has_the_lock_file_open(locked):
    assert supervisor_is_running(locked, os.getpid())
    assert locking_process(locked) == os.getpid()


def test_refuse_run_does_not_advise_to_resume_a_run_that_is_training(locked, monkeypatch):
    (locked / "config.toml").write_text("")
    with pytest.raises(FolderTaken, match="holds a run already; resume it"):
        refuse_run(locked, locked=True)  # this process has the lock only to look
    with pytest.raises(FolderTaken, match=r"holds a run that this process trains now; choose another run\.dir"):
        refuse_run(locked)
    other = os.getpid()
    monkeypatch.setattr("sfactory.run.folder.os.getpid", lambda: other + 1)
    with pytest.raises(FolderTaken, match=f"holds a run that process {other} trains now; choose another run.dir"):
        refuse_run(locked)


@pytest.mark.parametrize("pid", [1, 2**22 + 1, 2**70, -1, 0, "1", None, 1.5, True])
def test_supervisor_is_not_running_if_another_process_has_the_id(locked, pid):
    assert not supervisor_is_running(locked, pid)


def test_supervisor_is_not_running_if_it_does_not_have_this_lock(tmp_path):
    (tmp_path / ".lock").write_text(str(os.getpid()))
    assert not supervisor_is_running(tmp_path, os.getpid())


def test_supervisor_is_not_running_if_its_process_started_after_the_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        (tmp_path / ".lock").write_text("")
        os.utime(tmp_path / ".lock", (1000, 1000))
        assert not supervisor_is_running(tmp_path, process.pid)
    finally:
        process.communicate(b"\n")


def test_run_state_without_a_status_is_running_only_while_the_folder_is_locked(locked, tmp_path_factory):
    assert run_state(locked, {}) == "running"
    assert run_state(tmp_path_factory.mktemp("other"), {}) == "unknown"


def test_read_status_leaves_out_values_of_wrong_types(tmp_path):
    (tmp_path / "status.json").write_text(
        '{"state": "finished", "exit": "0", "seconds": NaN, "env_steps": 5, "pid": true, "updates": null, '
        '"sentence": "a\\ud800", "ledger": {"sampled": 1, "trained": "x", "skipped": 1e999}, "other": [1]}'
    )
    assert read_status(tmp_path) == {
        "state": "finished", "env_steps": 5, "sentence": "a\\ud800", "ledger": {"sampled": 1}
    }  # fmt: skip


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "status.json", "config.toml", ".lock", "report.html",
                                  "episodes.csv", "provenance.json"])  # fmt: skip
def test_refuse_links_names_a_file_that_leads_elsewhere(tmp_path, name):
    refuse_links(tmp_path)
    (tmp_path / name).symlink_to("/dev/null")
    with pytest.raises(FileRefused, match=f"{name} is a link"):
        refuse_links(tmp_path)


@pytest.mark.parametrize("name", ["tb", "debug", "checkpoints", "corrupt", "wandb"])
def test_refuse_links_names_a_folder_that_leads_elsewhere(tmp_path, name):
    (tmp_path / name).symlink_to("/tmp")
    with pytest.raises(FileRefused, match=f"{name} is a link"):
        refuse_links(tmp_path)


def test_refuse_links_accepts_the_links_that_wandb_makes_to_its_own_files(tmp_path):
    (tmp_path / "wandb/offline-run-1/logs").mkdir(parents=True)
    (tmp_path / "wandb/latest-run").symlink_to("offline-run-1")
    (tmp_path / "wandb/debug.log").symlink_to("offline-run-1/logs/debug.log")
    refuse_links(tmp_path)
    for name, target in (("id", "offline-run-1"), ("debug.log", "../../elsewhere"), ("loop", "loop")):
        path = tmp_path / "wandb" / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        with pytest.raises(FileRefused, match=f"{name} is a link"):
            refuse_links(tmp_path)
        path.unlink()


def test_new_run_dir_of_a_function_without_a_name_has_no_stray_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_run_dir("<lambda>", 3).name.startswith("lambda_s3_")


def test_natural_key_sorts_any_name(tmp_path):
    names = ["s10", "s2", "s²", "s" + "9" * 5000, "s02", "x"]
    order = sorted((tmp_path / name for name in names), key=natural_key)
    assert [path.name for path in order][:3] == ["s02", "s2", "s10"]


def test_file_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "plot.png").write_text("")
    with pytest.raises(CommandError, match=r"plot\.png is a file, not the folder of a run"):
        require_config_file(tmp_path / "plot.png")
