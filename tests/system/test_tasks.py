"""Multi-task policies, squashed actions and normalized value targets, from training to evaluation."""

import json

import pytest
from forked_processes import run_forked
from run_helpers import SMALL, command, rows

BOTH = "gymnasium/CartPole-v0,gymnasium/CartPole-v1"  # the same spaces, other time limits


def run(*words, code=0):
    done = run_forked(command(*words), capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr[-2000:]
    return done


@pytest.mark.slow
def test_multi_task_run_has_a_curve_and_an_evaluation_per_task(tmp_path):
    folder = tmp_path / "run"
    run("train", BOTH, "--run.dir", folder, *SMALL, "--stop.env-steps", "20k", "--quiet")
    last = rows(folder)[-1]
    zero, one = (last[f"charts/episodic_return/gymnasium/CartPole-v{n}"] for n in (0, 1))
    assert last["charts/episodic_return"] == pytest.approx((zero + one) / 2)
    assert_status_has_rows_by_task(folder)
    run("resume", folder, "--stop.env-steps", "24k", "--quiet")
    result = json.loads(run("eval", folder, "--episodes", 4, "--json").stdout)
    assert [task["env"] for task in result["tasks"]] == BOTH.split(",")
    assert [task["episodes"] for task in result["tasks"]] == [4, 4]


def assert_status_has_rows_by_task(folder):
    status = json.loads((folder / "status.json").read_text())
    assert list(status["rows_by_task"]) == BOTH.split(",")
    assert sum(status["rows_by_task"].values()) == status["ledger"]["sampled"] > 0
    return status["rows_by_task"].values()


def test_status_of_a_multi_task_run_has_the_sampled_rows_of_every_task(tmp_path):
    words = [*SMALL, "--run.mode", "lockstep", "--stop.env-steps", 100, "--quiet"]
    run("train", BOTH, "--run.dir", tmp_path / "two", *words)
    first, second = assert_status_has_rows_by_task(tmp_path / "two")
    assert first == second, "in lockstep all groups are stepped alike"
    run("train", "gymnasium/CartPole-v1", "--run.dir", tmp_path / "one", *words)
    assert "rows_by_task" not in json.loads((tmp_path / "one/status.json").read_text())


def test_every_group_of_a_multi_task_run_plays_its_own_task(tmp_path):
    from sfactory.config import Config, Env, Sampling
    from sfactory.envs import make_specs
    from sfactory.supervisor.lockstep import Lockstep
    from sfactory.workers.shared import RunSpec

    env = Env(name=BOTH)
    config = Config(env=env, sampling=Sampling(num_samplers=2, groups_per_sampler=3, envs_per_group=2))
    lockstep = Lockstep(RunSpec(config, make_specs(env.tasks)[0], str(tmp_path), 0))
    try:
        playing = {run.index: run.envs.spec.name for sampler in lockstep.samplers for run in sampler.runs}
    finally:
        lockstep.close()
    assert [playing[group] for group in range(6)] == 3 * BOTH.split(",")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("minatar/breakout,minatar/freeway", "cannot share a policy: obs obs (10, 10, 4) bool is not obs (10, 10, 7)"),
        ("atari/pong,atari/breakout", "--env.settings.full-action-space true"),
        ("gymnasium/CartPole-v1,gymnasium/CartPole-v1", "names a task twice"),
        ("gymnasium/CartPole-v1,pong", "pong is not FAMILY/ID"),
    ],
)
def test_incompatible_tasks_are_refused_in_one_line(tmp_path, target, says):
    done = run("train", target, "--run.dir", tmp_path / "run", code=2)
    assert says in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_groups_must_be_divisible_by_the_tasks(tmp_path):
    done = run("train", BOTH, "--run.dir", tmp_path / "run", "--sampling.groups-per-sampler", 1, code=2)
    assert "2 tasks cannot share 1 groups evenly" in done.stderr


@pytest.mark.slow
def test_squashed_actions_and_normalized_targets_train_resume_and_evaluate(tmp_path):
    """Two lockstep runs, one resumed: the second half would differ if the checkpoint were incomplete."""
    words = [*SMALL, "--run.mode", "lockstep", "--model.squash", "--normalize.value-targets", "--quiet"]
    words += ["--sampling.num-samplers", 1, "--log.every-updates", 5]
    straight, halved = tmp_path / "straight", tmp_path / "halved"
    run("train", "gymnasium/Pendulum-v1", "--run.dir", straight, *words, "--stop.env-steps", "6000")
    run("train", "gymnasium/Pendulum-v1", "--run.dir", halved, *words, "--stop.env-steps", "3000")
    run("resume", halved, "--stop.env-steps", "6000", "--quiet")
    for folder in (straight, halved):
        last = rows(folder)[-1]
        assert last["losses/value_loss"] < 20.0  # raw targets are in the hundreds here
    assert rows(straight)[-1]["losses/value_loss"] == rows(halved)[-1]["losses/value_loss"]
    result = json.loads(run("eval", straight, "--episodes", 2, "--json").stdout)
    assert result["returns"]


def test_squash_without_bounds_is_refused_before_anything_is_written(tmp_path):
    done = run("train", "gymnasium/CartPole-v1", "--run.dir", tmp_path / "run", "--model.squash", code=2)
    assert "model.squash is for continuous actions" in done.stderr
    assert not (tmp_path / "run").exists()
