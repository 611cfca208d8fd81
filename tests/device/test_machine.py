"""Rooflines are cached by workload and machine; a broken cache is not an error. Cores and quotas."""

import json
import os
from dataclasses import replace

import pytest

from sfactory.config import BatchConfig, Config, Env, Model, Run
from sfactory.device import machine
from sfactory.device.machine import cores, cpu_flags, lacks_bf16, numa_nodes, processor
from sfactory.monitor.known_rooflines import known_roofline, rooflines_file, store_roofline

CONFIG = Config(env=Env("minatar/breakout"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_known_roofline_returns_the_value_of_the_same_workload():
    assert known_roofline(CONFIG) is None
    store_roofline(CONFIG, 90_000.123)
    store_roofline(replace(CONFIG, env=Env("minatar/freeway")), 20_000)
    assert known_roofline(CONFIG) == 90_000.1
    same = replace(CONFIG, optim=replace(CONFIG.optim, lr=1e-5), stop=replace(CONFIG.stop, env_steps=7))
    assert known_roofline(same) == 90_000.1, "these settings do not change the speed"


@pytest.mark.parametrize(
    "change",
    [
        {"env": Env("minatar/breakout", settings={"sticky": 0.5})},
        {"model": Model(hidden=(512,))},
        {"batch": BatchConfig(epochs=9)},
        {"run": Run(precision="bf16")},
    ],
    ids=str,
)
def test_known_roofline_depends_on_settings_that_change_the_speed(change):
    store_roofline(CONFIG, 90_000)
    assert known_roofline(replace(CONFIG, **change)) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "null"])
def test_remember_roofline_replaces_a_broken_cache(text):
    rooflines_file().parent.mkdir(parents=True)
    rooflines_file().write_text(text)
    assert known_roofline(CONFIG) is None
    store_roofline(CONFIG, 5.0)
    assert known_roofline(CONFIG) == 5.0


def test_known_roofline_ignores_a_roofline_of_another_kind():
    store_roofline(CONFIG, 5.0)
    (key,) = json.loads(rooflines_file().read_text())
    other = json.loads(key)
    assert other.pop("roofline") == "torch, best batch, median"
    rooflines_file().write_text(json.dumps({json.dumps(other, sort_keys=True): 5.0}))
    assert known_roofline(CONFIG) is None


@pytest.mark.parametrize("value", ["fast", None, [], 0, -3])
def test_known_roofline_ignores_values_that_are_not_a_speed(value):
    store_roofline(CONFIG, 5.0)
    (key,) = json.loads(rooflines_file().read_text())
    rooflines_file().write_text(json.dumps({key: value}))
    assert known_roofline(CONFIG) is None


def test_remember_roofline_ignores_a_cache_that_cannot_be_written(cache):
    (cache / "sfactory").write_text("a file where the folder should be")
    store_roofline(CONFIG, 5.0)
    assert known_roofline(CONFIG) is None


def test_machine_has_cores_and_a_processor_name():
    assert cores() >= 1
    assert processor()


@pytest.mark.parametrize(
    ("quota", "found"), [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_cores_respects_the_quota_of_a_container(tmp_path, monkeypatch, quota, found):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(machine, "affinity", lambda: 64)
    monkeypatch.setattr(machine, "control_groups", lambda: [tmp_path])
    assert cores() == found


@pytest.mark.parametrize(
    ("line", "lacks"),
    [
        ("flags\t\t: fpu sse avx512_bf16", False),
        ("Features\t: fp asimd bf16", False),
        ("flags\t\t: fpu avx512f", True),
        ("model name\t: no flags", False),  # unknown: it has to be measured
    ],
)
def test_lacks_bf16_is_certain_only_where_the_system_lists_cpu_flags(tmp_path, line, lacks):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    assert lacks_bf16(cpu_flags(tmp_path / "cpuinfo")) is lacks
    assert cpu_flags(tmp_path / "absent") == set()


def test_known_roofline_depends_on_the_presence_of_a_gpu(tmp_path, monkeypatch):
    """Nodes of a cluster share a home folder."""
    monkeypatch.setattr(machine, "GPUS", (str(tmp_path),))
    store_roofline(CONFIG, 90_000)
    monkeypatch.setattr(machine, "GPUS", ())
    assert known_roofline(CONFIG) is None


def nodes_folder(folder, **cpulists):
    for name, text in cpulists.items():
        (folder / name).mkdir()
        (folder / name / "cpulist").write_text(text)
    return folder


def test_numa_nodes_lists_the_allowed_cores_of_each_node_in_order(tmp_path):
    root = nodes_folder(tmp_path, node0="0-3,8-9\n", node1="4-7\n", node2="\n", node10="10\n", node3="11\n")
    (root / "power").mkdir()
    assert numa_nodes(root, range(12)) == [{0, 1, 2, 3, 8, 9}, {4, 5, 6, 7}, {11}, {10}]
    assert numa_nodes(root, [2, 9]) == [{2, 9}], "the others cannot be used"
    assert numa_nodes(root / "power", range(12)) == [], "no description"


def test_numa_nodes_of_this_machine_hold_the_cores_of_this_process():
    nodes = numa_nodes()
    assert frozenset().union(*nodes) == os.sched_getaffinity(0)
