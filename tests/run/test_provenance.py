"""provenance.json: what started a run, on which machine and code; one entry for each launch, and no secrets."""

import json
import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import sfactory
from sfactory.run import provenance


def git(folder, *arguments):
    names = ["-c", "user.name=x", "-c", "user.email=x@y"]
    done = subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, which is the current folder."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "env.py").write_text("x = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.chdir(folder)
    return folder


def test_provenance_names_the_commit_and_whether_the_code_was_changed(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert provenance.git_state(repository) == {"commit": commit, "changed": False}
    (repository / "runs").mkdir()
    (repository / "runs/log.txt").write_text("not part of the code")
    assert provenance.git_state(repository)["changed"] is False
    (repository / "env.py").write_text("x = 2\n")
    assert provenance.git_state(repository)["changed"] is True
    assert provenance.code(provenance.found(0, "")) == f"commit {commit}, with changes"


def test_provenance_without_a_repository_or_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state(tmp_path) == {}
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(tmp_path) == {}
    assert "git" not in provenance.found(0, "")


def test_provenance_names_the_commit_of_sfactory_if_it_runs_from_a_checkout(repository, tmp_path, monkeypatch):
    """All development states have the same version, and people train in folders of their own."""
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "sfactory").mkdir()
    assert provenance.checkout_state(repository / "sfactory") == {"commit": commit, "changed": False}
    (repository / "venv/site-packages/sfactory").mkdir(parents=True)
    assert provenance.checkout_state(repository / "venv/site-packages/sfactory") == {}, "a repository of the user"
    monkeypatch.setattr(provenance, "checkout_state", lambda: {"commit": "c" * 40, "changed": True})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert dict(provenance.rows(provenance.found(0, "")))["sfactory"] == f"commit {'c' * 40}, with changes"


def test_provenance_shows_one_commit_for_a_run_that_was_started_in_the_checkout():
    same = {"commit": "c" * 40, "changed": False}
    shown = dict(provenance.rows({"git": same, "sfactory_git": same}))
    assert shown == {"code": f"commit {'c' * 40}, unchanged"}


def test_provenance_starts_no_monitor_that_a_repository_names(repository):
    (repository / "monitor.sh").write_text(f"#!/bin/sh\ntouch {repository}/started\n")
    (repository / "monitor.sh").chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(repository / "monitor.sh"))
    assert provenance.git_state(repository)["changed"] is False
    assert not (repository / "started").exists()


def test_provenance_has_versions_machine_and_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/sfactory/__main__.py", "train", "a b", "--optim.lr", "1e-3"])
    entry = provenance.found(0, "")
    assert entry["command"] == "sfactory train 'a b' --optim.lr 1e-3"
    expected = {"numpy": np.__version__, "gymnasium": gymnasium.__version__, "sfactory": sfactory.__version__}
    assert {name: entry["versions"][name] for name in expected} == expected
    assert entry["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    names = [name for name, _ in provenance.rows(entry)]
    assert [name for name in names if name != "code"] == [
        "started", "command", "folder", "host", "CPU", "system", "versions",
    ]  # fmt: skip


def test_provenance_holds_no_environment_variables_and_no_secrets(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "abc123secret")
    arguments = ["--env.settings.api-key", "abc123secret", "--env.settings.token=abc123secret", "--x", "keep"]
    monkeypatch.setattr(sys, "argv", ["sfactory", "train", *arguments])
    provenance.record(tmp_path, 0, "")
    text = (tmp_path / provenance.FILE).read_text()
    assert "abc123secret" not in text
    assert "--env.settings.api-key ... --env.settings.token=... --x keep" in text
    assert os.environ["PATH"] not in text


def test_provenance_keeps_an_entry_for_every_launch(tmp_path):
    for launch in range(3):
        provenance.record(tmp_path, launch, f"/runs/a/checkpoints/00{launch}" if launch else "")
    entries = provenance.read(tmp_path)
    assert [entry["launch"] for entry in entries] == [0, 1, 2]
    assert [entry.get("resumed_from") for entry in entries] == [None, "001", "002"]


def test_provenance_keeps_the_first_and_the_newest_of_many_launches(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "MOST_LAUNCHES", 3)
    for launch in range(5):
        provenance.record(tmp_path, launch, "")
    assert [entry["launch"] for entry in provenance.read(tmp_path)] == [0, 3, 4]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"launches": 3}',
        '{"launches": [3, null]}',
        "[" * 100_000,
        '{"launches": [{"git": 3, "cpu": []}]}',
    ],
)
def test_provenance_reads_any_file(tmp_path, text):
    (tmp_path / provenance.FILE).write_text(text)
    for entry in provenance.read(tmp_path):
        assert provenance.rows(entry) == []
    provenance.record(tmp_path, 7, "")
    assert provenance.read(tmp_path)[-1]["launch"] == 7


def test_provenance_that_cannot_be_written_stops_nothing(tmp_path):
    provenance.record(tmp_path / "absent", 0, "")
    (tmp_path / provenance.FILE).symlink_to(tmp_path / "other")
    provenance.record(tmp_path, 0, "")
    assert not (tmp_path / "other").exists()
    assert json.dumps(provenance.found(0, ""))
