"""Limits of control groups of both versions, nested ones too, and the memory that they leave."""

import math

import pytest

from sfactory.device.machine import cpu_quota
from sfactory.shm import control_groups

MIB = 2**20


def write_groups(root, limits):
    """Files of control groups: folder -> (limit, in use, cached), in MiB; the version is told by the folder."""
    for folder, (limit, used, cached) in limits.items():
        old = folder.startswith("memory")
        group = root / folder
        group.mkdir(parents=True, exist_ok=True)
        top = "9223372036854771712" if old else "max"
        value = top if limit is None else str(limit * MIB)
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{value}\n")
        (group / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used * MIB}\n")
        names = ("inactive_file 7", "total_inactive_file") if old else ("anon 5", "inactive_file")
        (group / "memory.stat").write_text(f"{names[0]}\n{names[1]} {cached * MIB}\n")


NESTED = "0::/slurm/job1\n"
OLD = "4:memory:/slurm/job1\n1:cpu:/other\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "limits", "mib", "text"),
    [
        (NESTED, {}, 4000, "4000 MiB are free on this machine"),
        (NESTED, {"slurm/job1": (1024, 50, 0)}, 974, "slurm/job1 allows 1024 MiB, 50 MiB of them are in use"),
        (NESTED, {"slurm/job1": (None, 50, 0), "slurm": (1024, 50, 0)}, 974, "slurm allows 1024 MiB"),
        (NESTED, {"slurm/job1": (2000, 50, 0), ".": (1024, 50, 0)}, 974, "allows 1024 MiB"),
        (NESTED, {"slurm/job1": (100, 99, 60)}, 61, "39 MiB of them are in use"),
        (NESTED, {"slurm/job1": (100, 130, 0)}, 0, "0 MiB are free"),
        (NESTED, {"slurm/job2": (100, 99, 0)}, 4000, "on this machine"),
        (OLD, {"memory/slurm/job1": (1024, 50, 0)}, 974, "memory/slurm/job1 allows 1024 MiB"),
        (OLD, {"memory/slurm/job1": (None, 50, 0), "memory/slurm": (1024, 50, 0)}, 974, "memory/slurm allows"),
        (OLD, {"memory": (1024, 50, 0), "memory/slurm/job1": (None, 1, 0)}, 974, "memory allows 1024 MiB"),
        (OLD, {"memory/slurm/job1": (100, 99, 60)}, 61, "39 MiB of them are in use"),
    ],
)
def test_free_memory_is_that_of_the_tightest_group_of_both_versions(tmp_path, membership, limits, mib, text):
    write_groups(tmp_path / "cg", limits)
    (tmp_path / "self").write_text(membership)
    (tmp_path / "meminfo").write_text("MemTotal: 8192000 kB\nMemAvailable: 4096000 kB\n")
    found = control_groups.free_memory(tmp_path / "cg", tmp_path / "self", tmp_path / "meminfo")
    assert round(found.bytes / MIB) == mib
    assert text in found.text


def test_free_memory_has_no_limit_where_the_system_tells_nothing(tmp_path):
    assert control_groups.free_memory(tmp_path, tmp_path / "self", tmp_path / "meminfo").bytes == math.inf


def test_cpu_quota_of_a_nested_group_of_version_1_applies(tmp_path):
    for folder, quota in (("cpu", -1), ("cpu/job", 200000), ("cpu/job/step", -1)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / folder / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "self").write_text("2:cpu,cpuacct:/job/step\n")
    groups = control_groups.version_1_groups("cpu", tmp_path, tmp_path / "self")
    assert groups == [tmp_path / "cpu", tmp_path / "cpu/job", tmp_path / "cpu/job/step"]
    assert control_groups.smallest(map(cpu_quota, groups)) == 2.0


@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_a_run_that_does_not_fit_into_its_control_group_ends_with_exit_11(typed, tmp_path, monkeypatch, mode):
    write_groups(tmp_path / "cg", {"slurm/job1": (40, 30, 0)})
    (tmp_path / "self").write_text(NESTED)
    free = control_groups.free_memory(tmp_path / "cg", tmp_path / "self")
    monkeypatch.setattr("sfactory.shm.arena.free_memory", lambda *_: free)
    words = ("--run.mode", mode, "--sampling.rollout-length", "20000", "--run.dir", "a")
    code, _, line = typed("train", "minatar/breakout", *words)
    assert code == 11
    assert "10 MiB are free: the control group" in line
    assert "slurm/job1 allows 40 MiB, 30 MiB of them are in use" in line
