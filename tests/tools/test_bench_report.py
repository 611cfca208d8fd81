"""The report of `sfactory bench` and the speed of a run. Real runs: tests/system/test_bench.py."""

import json
from dataclasses import replace

import pytest

from sfactory.config import BatchConfig, Config, Env, Model, Sampling, with_settings
from sfactory.config.parsing import build
from sfactory.config.presets import read_toml, target_layers
from sfactory.config.toml_file import to_toml
from sfactory.tools import roofline
from sfactory.tools.bench import (
    BenchReport,
    StageCosts,
    Trial,
    measured_config,
    median_speed,
    own_stages,
    rows_per_step,
    task_shares,
)
from sfactory.tools.roofline import Cost, Line, Roofline, TaskCost

MACHINE = {"cores": 2, "cpu": "a CPU", "gpu": "", "torch": "2.13", "python": "3.11", "date": "2026-11-30"}
ROW = {"stage/learner/wait": 0.05, "stage/inference/wait": 0.4, "stage/sampler/wait": 0.9, "stage/learner/update": 0.9}


def line(speed, limit="all cores"):
    cost = Cost(2e-6, "a loop", 1e-6)
    return Line(cost, cost, cost, {limit: speed, "other": 2 * speed})


def report(speed, one_pass=None):
    lines = [line(50_000.0), line(20_000.0), line(8_000.0, "learner"), line(40_000.0)]
    once = one_pass and Trial(one_pass, 2.0, ROW, {})
    run = Trial(speed, 2.5, ROW, {"supervisor": 40.0, "learner": 200.0})
    of_lines = Roofline(2, "cpu", "4 x forward and backward + 1 forward", *lines)
    return BenchReport("minatar/breakout", MACHINE, of_lines, StageCosts(1e-6, 2e-6, 3e-6, 4e-6), run, once)


@pytest.mark.parametrize(
    "changes",
    [
        {"eval.every": 1000, "eval.episodes": 7, "eval.greedy": True, "eval.video": True},
        {"run.mode": "lockstep", "batch.forced_lag": 2},
        {"sampling.auto": True},
    ],
)
def test_settings_of_a_measured_run_can_be_used_whatever_the_given_ones_are(tmp_path, changes):
    config = with_settings(build(*target_layers("classic/cartpole"), {}), changes)
    measured = measured_config(config, tmp_path / "run")
    assert (measured.eval.every, measured.batch.forced_lag, measured.sampling.auto) == (0, 0, False)
    assert measured.optim == config.optim
    (tmp_path / "settings.toml").write_text(to_toml(measured))
    assert build(read_toml(tmp_path / "settings.toml")) == measured


def words(found):
    """The text with single spaces."""
    return " ".join(found.text().split())


def rows(*pairs):
    return [{"seconds": seconds, "env_steps": steps} for seconds, steps in pairs]


def test_median_speed_is_the_median_of_five_stretches():
    steady = rows(*((second, 100.0 * second) for second in range(2, 13)))
    assert median_speed(steady) == 100.0
    slow_start = rows((2, 0), (12, 10), *((12 + k, 10 + 100 * k) for k in range(1, 10)))
    assert median_speed(slow_start) == pytest.approx(100.0), "one stretch was slow, and all other rows as before"


def test_median_speed_of_two_rows_is_that_between_them():
    assert median_speed(rows((3.0, 2048), (9.5, 4096))) == pytest.approx(2048 / 6.5)


def test_bench_report_names_the_share_and_the_limit_of_every_line():
    text = words(report(4_000.0))
    assert "arithmetic 50k steps/s (limit: all cores); the run is 8% torch" in text
    assert "torch, best batch 20k steps/s (limit: all cores); the run is 20% torch" in text
    assert "torch, these batches 8k steps/s (limit: learner); the run is 50% as given" in text
    assert "as given 4k steps/s, 20% of torch, best batch busy" in text
    assert "sum 6.00 6.00 6.00 10.00" in text
    assert "one pass" not in text


def test_bench_report_says_that_a_run_is_faster_than_a_reference():
    shown = [line for line in report(10_000.0).text().splitlines() if "faster than the reference loops" in line]
    (shown,) = shown
    assert shown.startswith("torch, these batches")
    assert shown.endswith("the run is 125%, faster than the reference loops")


def test_bench_report_shows_one_pass_beside_the_given_settings():
    found = report(4_000.0, one_pass=30_000.0)
    assert "one pass 30k steps/s, 75% of torch, best batch with one pass" in words(found)
    assert found.as_dict()["one_pass"]["share"] == 0.75


def test_bench_report_as_json_has_all_lines():
    found = json.loads(json.dumps(report(4_000.0).as_dict()))
    assert found["shares"] == {"arithmetic": 0.08, "best_batch": 0.2, "these_batches": 0.5}
    assert found["rooflines"]["these_batches"]["limits"]["learner"] == 8_000.0
    assert found["rooflines"]["best_batch"]["training"]["seconds"] == 2e-6
    assert found["whole"]["bottleneck"] == "learner"
    assert found["one_pass"] is None


def test_bench_report_of_agents_says_which_steps_it_means():
    found = replace(report(4_000.0, 3_000.0), agents=3, env_steps_per_step=0.5)
    text = words(found)
    assert "3 agents: every step here is a step of one agent" in text
    assert "us per agent step" in text
    assert "torch, best batch 20k agent steps/s (limit: all cores); the run is 20%" in text
    assert "as given 4k agent steps/s, about 2k env steps/s, 20% of torch, best batch" in text
    assert "one pass 3k agent steps/s," in text
    assert found.speed == "4,000 agent steps/s (about 2,000 env steps/s)"
    assert found.as_dict()["unit"] == "agent steps"
    assert "agent" not in words(report(4_000.0))
    assert report(4_000.0).speed == "4,000 steps/s"


def test_bench_report_names_the_tasks_that_its_environment_is_the_mean_of():
    found = report(4_000.0)
    tasks = {"minatar/breakout": TaskCost(0.4, 1e-6), "minatar/asterix": TaskCost(0.6, 3e-6)}
    several = replace(found, roofline=found.roofline._replace(tasks=tasks))
    assert "minatar/breakout: 40% of the steps, 1.00 us" in words(several)
    assert "minatar/asterix: 60% of the steps, 3.00 us" in words(several)
    assert several.as_dict()["tasks"]["minatar/asterix"] == {"share": 0.6, "seconds": 3e-6}
    assert "% of the steps" not in words(found)
    assert found.as_dict()["tasks"] == {}


def test_task_shares_are_those_of_the_rows_that_a_run_has_sampled(tmp_path):
    (tmp_path / "status.json").write_text(json.dumps({"rows_by_task": {"a/b": 300, "a/c": 100}}))
    assert task_shares(tmp_path) == {"a/b": 0.75, "a/c": 0.25}
    (tmp_path / "status.json").write_text("{}")
    assert task_shares(tmp_path) == {}


@pytest.mark.filterwarnings("ignore:.*CartPole-v0 is out of date")
def test_own_stages_times_the_environments_of_all_tasks(monkeypatch):
    tasks = "gymnasium/CartPole-v1", "gymnasium/CartPole-v0"
    config = Config(
        env=Env(",".join(tasks)), sampling=Sampling(1, 2, envs_per_group=2, rollout_length=4),
        batch=BatchConfig(epochs=1, minibatches=1), model=Model(hidden=(4,)),
    )  # fmt: skip
    costs = dict(zip(tasks, (1e-6, 9.0), strict=True))  # no sampler is as slow as the second one
    monkeypatch.setattr(roofline, "random_steps", lambda group: group.spec.name)
    monkeypatch.setattr(roofline, "median_rate", lambda name, seconds: costs[name])
    found = own_stages(config, 0.1, dict(zip(tasks, (0.75, 0.25), strict=True)))
    assert found.environment == pytest.approx(0.75e-6 + 2.25)
    assert found.hand_over == 0.0, "the sampler's time less that of both environments"
    assert own_stages(config, 0.1).environment == pytest.approx(4.5)


def test_rows_per_step_counts_rows_without_a_step_of_an_agent(tmp_path):
    status = {"env_steps": 500, "ledger": {"sampled": 1400, "trained": 1250}}
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert rows_per_step(tmp_path) == 2.5


@pytest.mark.parametrize(("more", "unit"), [({}, "steps"), ({"charts/environment_SPS": 50.0}, "agent steps")])
def test_trial_says_whose_steps_it_counts(more, unit):
    assert Trial(100.0, 2.5, ROW | more, {}).unit == unit
