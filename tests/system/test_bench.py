"""bench and profile on real runs."""

import json
import subprocess

import pytest
from run_helpers import command

from sfactory.config.parsing import build
from sfactory.config.presets import split_flags, target_layers
from sfactory.monitor.known_rooflines import known_roofline
from sfactory.monitor.metrics import STAGES

FAST = ["--sampling.envs-per-group", "8", "--sampling.rollout-length", "16", "--batch.epochs", "1"]
FAST += ["--batch.minibatches", "1", "--run.device", "cpu"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """What is measured here is nobody's roofline."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_bench_says_costs_roofline_share_and_bottleneck(tmp_path):
    words = command("bench", "classic/cartpole", "--seconds", 3, "--json", *FAST)
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    roof, whole = report["roofline"], report["whole"]
    seconds = sum(roof[name]["seconds"] for name in ("environment", "inference", "training"))
    assert abs(roof["steps_per_second"] * seconds / roof["cores"] - 1) < 1e-9
    assert report["share"] == whole["steps_per_second"] / roof["steps_per_second"]
    assert 0.01 < report["share"] < 1.5
    assert all(report["stages"][name] > 0 for name in ("environment", "inference", "learner"))
    assert whole["bottleneck"] in STAGES
    assert {"supervisor", "learner", "inference", "sampler-0"} <= set(whole["memory_mb"])
    assert 0.5 < whole["start_s"] < 60
    assert not list(tmp_path.iterdir())  # nothing is left where it was called
    flags, _, (target,) = split_flags(["classic/cartpole", *FAST], {})
    remembered = known_roofline(build(*target_layers(target), flags))
    assert abs(remembered - roof["steps_per_second"]) < 0.1, "training tells its share of it"


def test_search_writes_settings_that_train_reads(tmp_path):
    best = tmp_path / "best.toml"
    words = command("bench", "classic/cartpole", "--seconds", 2, "--search", 1, "--write", best, *FAST)
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "as given" in done.stdout
    shown = subprocess.run(
        command("train", "classic/cartpole", "--config", best, "--print-config"), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr


def test_profile_writes_a_timeline_of_every_worker(tmp_path):
    trace = tmp_path / "trace.json"
    words = command("profile", "classic/cartpole", "--seconds", 2, "-o", trace, *FAST)
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    events = json.loads(trace.read_text())["traceEvents"]
    workers = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert workers == ["sampler-0", "inference", "learner"]
    assert {"env_step", "forward", "update"} <= {event["name"] for event in events}
    assert "learner" in done.stdout


def test_a_workload_that_does_not_run_is_said_in_one_line(tmp_path):
    words = command("bench", "faults/count", "--seconds", 2, "--env.settings.raise-at", 5, "--env.fault-budget", 1)
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "environments failed more than 1 times" in done.stderr.strip().splitlines()[-1]
