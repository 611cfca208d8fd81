"""Rooflines are remembered by workload, and a cache that is broken or cannot be written stops nobody."""

import json
from dataclasses import replace

import pytest

from sfactory.config import BatchConfig, Config, Env, Model, Run
from sfactory.device import machine
from sfactory.device.machine import cores, processor
from sfactory.monitor.known_rooflines import known_roofline, remember_roofline, rooflines_file

CONFIG = Config(env=Env("minatar/breakout"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_roofline_is_known_for_the_workload_it_was_measured_of():
    assert known_roofline(CONFIG) is None
    remember_roofline(CONFIG, 90_000.123)
    remember_roofline(replace(CONFIG, env=Env("minatar/freeway")), 20_000)
    assert known_roofline(CONFIG) == 90_000.1
    same = replace(CONFIG, optim=replace(CONFIG.optim, lr=1e-5), stop=replace(CONFIG.stop, env_steps=7))
    assert known_roofline(same) == 90_000.1, "nothing of it costs time"


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
def test_whatever_costs_time_makes_another_workload(change):
    remember_roofline(CONFIG, 90_000)
    assert known_roofline(replace(CONFIG, **change)) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "null"])
def test_a_broken_cache_is_begun_anew(text):
    rooflines_file().parent.mkdir(parents=True)
    rooflines_file().write_text(text)
    assert known_roofline(CONFIG) is None
    remember_roofline(CONFIG, 5.0)
    assert known_roofline(CONFIG) == 5.0


@pytest.mark.parametrize("value", ["fast", None, [], 0, -3])
def test_a_value_that_is_no_speed_is_no_roofline(value):
    remember_roofline(CONFIG, 5.0)
    (key,) = json.loads(rooflines_file().read_text())
    rooflines_file().write_text(json.dumps({key: value}))
    assert known_roofline(CONFIG) is None


def test_a_cache_that_cannot_be_written_is_left_alone(cache):
    (cache / "sfactory").write_text("a file where the folder should be")
    remember_roofline(CONFIG, 5.0)
    assert known_roofline(CONFIG) is None


def test_the_machine_has_cores_and_a_name():
    assert cores() >= 1
    assert processor()


@pytest.mark.parametrize(
    ("quota", "found"), [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 64)]
)
def test_a_containers_quota_counts_and_not_only_the_machine(tmp_path, monkeypatch, quota, found):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(machine, "affinity", lambda: 64)
    monkeypatch.setattr(machine, "control_groups", lambda: [tmp_path])
    assert cores() == found


def test_a_roofline_of_a_gpu_is_not_that_of_a_machine_without(tmp_path, monkeypatch):
    """Nodes of a cluster share a home folder."""
    monkeypatch.setattr(machine, "GPUS", (str(tmp_path),))
    remember_roofline(CONFIG, 90_000)
    monkeypatch.setattr(machine, "GPUS", ())
    assert known_roofline(CONFIG) is None
