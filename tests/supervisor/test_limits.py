"""Limits that are too small for a run are refused with the numbers, before anything is written."""

import os
import resource

import pytest

from sfactory.errors import CommandError, Exit
from sfactory.shm import control_groups
from sfactory.shm.control_groups import FreeMemory, FreeProcesses
from sfactory.supervisor import limits


@pytest.mark.parametrize(
    ("membership", "folder"), [("0::/job\n", "job"), ("8:pids:/job\n", "pids/job")], ids=["version 2", "version 1"]
)
def test_free_processes_are_those_of_the_tightest_control_group(tmp_path, membership, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "pids.max").write_text("20\n")
    (tmp_path / folder / "pids.current").write_text("15\n")
    (tmp_path / "self").write_text(membership)
    free = control_groups.free_processes(tmp_path, tmp_path / "self")
    assert free == (5, f"the control group {tmp_path / folder} allows 20 and has 15")


def test_free_processes_count_the_tasks_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "getuid", lambda: 77)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (30, 30))
    monkeypatch.setattr(control_groups, "tasks_of_user", lambda uid: 28 if uid == 77 else 0)
    free = control_groups.free_processes(tmp_path, tmp_path / "self")
    assert free == (2, "the limit of this user is 30 (ulimit -u) and 28 exist")


def test_tasks_of_user_are_processes_and_threads(tmp_path):
    for pid, uid, threads in ((1, 0, 1), (2, 77, 3), (3, 77, 1)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "status").write_text(f"Name:\tx\nUid:\t{uid}\t0\t0\t0\nThreads:\t{threads}\n")
    assert control_groups.tasks_of_user(77, tmp_path) == 4


def test_run_is_refused_if_too_few_processes_or_too_little_memory_is_free(typed, tmp_path, monkeypatch):
    words = ("train", "classic/cartpole", "--run.dir", "runs/a", "--sampling.num-samplers", "1")
    monkeypatch.setattr(limits, "free_memory", lambda: FreeMemory(99 * 2**20, "99 MiB are free: group a allows 100"))
    code, _, line = typed(*words)
    assert code == Exit.RESOURCES
    assert "need at least 200 MiB" in line
    assert "99 MiB are free: group a allows 100" in line
    monkeypatch.setattr(limits, "free_processes", lambda: FreeProcesses(12, "group a allows 20 and has 8"))
    code, _, line = typed(*words)
    assert code == Exit.RESOURCES
    assert "3 workers need about 13 processes and threads, group a allows 20 and has 8" in line
    assert list(tmp_path.iterdir()) == []


def test_run_is_refused_if_the_slots_held_for_replay_need_more_memory_than_is_free(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "free_memory", lambda: FreeMemory(250 * 2**20, "250 MiB are free"))
    monkeypatch.setattr(limits, "check_processes", lambda number: None)
    words = ("train", "classic/cartpole", "--run.dir", "runs/a", "--sampling.num-samplers", "1", "--run.device", "cpu")
    code, _, line = typed(*words, "--replay.ratio", "1", "--replay.max-age", "10k")
    assert code == Exit.RESOURCES
    assert "the slots held for replay 2" in line
    assert "lower replay.max-age, replay.ratio, sampling.num-samplers" in line
    code, _, line = typed(*words, "--algorithm.name", "ppg", "--ppg.policy-updates", "10k")
    assert code == Exit.RESOURCES
    assert "the batches kept for an auxiliary phase" in line
    assert "lower ppg.policy-updates, sampling.num-samplers" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("hard", "refused"), [(10**9, False), (2**20, True)])
def test_check_file_size_raises_the_soft_limit_or_refuses(monkeypatch, hard, refused):
    chosen = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: chosen.append(pair))
    if refused:
        with pytest.raises(CommandError, match="the limit of file sizes is 1 MiB"):
            limits.check_file_size(0)
    else:
        limits.check_file_size(100 * 2**20)
    assert chosen == [(hard if refused else 100 * 2**20, hard)]
