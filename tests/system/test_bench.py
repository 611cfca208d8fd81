"""`sfactory bench` and `sfactory profile` on real runs."""

import json
import subprocess
import time

import pytest
from forked_processes import run_forked
from run_helpers import command

from sfactory.config import with_settings
from sfactory.config.flags import split_flags
from sfactory.config.parsing import build
from sfactory.config.presets import target_layers
from sfactory.monitor.known_rooflines import known_roofline
from sfactory.monitor.table import STAGES
from sfactory.tools.bench import MIN_STRETCHES, trial

SMALL = ["--sampling.envs-per-group", "8", "--sampling.rollout-length", "16", "--run.device", "cpu"]
FAST = [*SMALL, "--batch.epochs", "1", "--batch.minibatches", "1"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keep the rooflines measured here out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.slow
def test_bench_reports_costs_roofline_share_and_bottleneck(tmp_path):
    words = command("bench", "classic/cartpole", "--seconds", 3, "--json", *FAST)
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    lines, whole = report["rooflines"], report["whole"]
    best = lines["best_batch"]
    seconds = sum(best[name]["seconds"] for name in ("environment", "inference", "training"))
    assert abs(best["steps_per_second"] * seconds / lines["cores"] - 1) < 1e-9
    assert report["one_pass"] is None, "the settings are those of one pass"
    for name, share in report["shares"].items():
        assert share == whole["steps_per_second"] / lines[name]["steps_per_second"]
        assert 0.001 < share < 3
    assert all(report["stages"][name] > 0 for name in ("environment", "inference", "learner"))
    assert whole["bottleneck"] in STAGES
    assert {"supervisor", "learner", "inference", "sampler-0"} <= set(whole["memory_mb"])
    assert 0.5 < whole["start_s"] < 60
    assert not list(tmp_path.iterdir())  # nothing is left where it was called
    flags, _, (target,) = split_flags(["classic/cartpole", *FAST], {})
    remembered = known_roofline(build(*target_layers(target), flags))
    assert abs(remembered - best["steps_per_second"]) < 0.1, "training tells its share of it"


@pytest.mark.slow
def test_bench_of_several_tasks_measures_all_of_them_in_their_shares(tmp_path):
    tasks = "gymnasium/CartPole-v0,gymnasium/CartPole-v1"
    done = run_forked(
        command("bench", tasks, "--seconds", 2, "--json", *FAST), capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    found = report["tasks"]
    assert list(found) == tasks.split(",")
    assert sum(task["share"] for task in found.values()) == pytest.approx(1)
    assert all(0.2 < task["share"] < 0.8 for task in found.values())
    mean = sum(task["share"] * task["seconds"] for task in found.values())
    assert report["rooflines"]["these_batches"]["environment"]["seconds"] == pytest.approx(mean)


@pytest.mark.slow
def test_bench_measures_one_pass_beside_the_given_settings(tmp_path):
    words = command(
        "bench", "classic/cartpole", "--seconds", 2, "--json", *SMALL, "--batch.epochs", 64, "--batch.minibatches", 1
    )
    done = run_forked(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["one_pass"]["steps_per_second"] > report["whole"]["steps_per_second"]
    assert report["rooflines"]["passes"] == "64 x forward and backward + 1 forward"


@pytest.mark.slow
def test_trial_goes_on_until_a_slow_run_has_enough_rows():
    """An update takes two seconds here: half a second of rows after the warm-up would be one row."""
    settings = {"sampling.rollout_length": 8, "sampling.envs_per_group": 2, "env.settings": {"slow_step": 0.125}}
    settings |= {"batch.epochs": 1, "batch.minibatches": 1}
    config = with_settings(build(*target_layers("faults/count"), {}), settings)
    began = time.monotonic()
    found = trial(config, 0.5)
    assert time.monotonic() - began > found.start_s + MIN_STRETCHES
    assert 8 < found.steps_per_second < 17, "one sampler takes 0.25 s for 4 steps"
    assert sum(found.memory_mb.values()) > 50


@pytest.mark.slow
def test_bench_search_writes_settings_that_train_reads(tmp_path):
    best = tmp_path / "best.toml"
    words = command("bench", "classic/cartpole", "--seconds", 2, "--search", 1, "--write", best, *FAST)
    done = run_forked(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "as given" in done.stdout
    shown = run_forked(
        command("train", "classic/cartpole", "--config", best, "--print-config"), capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr


def test_profile_writes_a_timeline_of_every_worker(tmp_path):
    trace = tmp_path / "trace.json"
    words = command("profile", "classic/cartpole", "--seconds", 2, "-o", trace, *FAST)
    done = run_forked(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    events = json.loads(trace.read_text())["traceEvents"]
    workers = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert workers == ["sampler-0", "inference", "learner"]
    assert {"env_step", "forward", "update"} <= {event["name"] for event in events}
    assert "learner" in done.stdout


def test_bench_reports_a_failing_workload_in_one_line(tmp_path):
    words = command(
        "bench", "faults/count", *FAST, "--seconds", 2, "--env.settings.raise-at", 5, "--env.fault-budget", 1
    )
    done = run_forked(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "environments failed more than 1 times" in done.stderr.strip().splitlines()[-1]
