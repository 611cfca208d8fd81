"""Real runs of environments with several agents: they learn, and their numbers agree."""

import json
import shutil
from pathlib import Path

import agent_envs
import numpy as np
import pytest
from builders import trained
from forked_processes import run_forked
from run_helpers import command, rows

import sfactory

SMALL = [
    "--sampling.num-samplers", "1", "--sampling.groups-per-sampler", "2", "--sampling.envs-per-group", "8",
    "--batch.minibatches", "4", "--batch.epochs", "6", "--optim.lr", "1e-3",
    "--log.every-seconds", "0.5", "--run.device", "cpu", "--quiet",
]  # fmt: skip
# It stops when it has learned, not after a number of steps: how many it needs depends on the load of the machine.
TOGETHER = [
    "--sampling.rollout-length", "16", "--loss.entropy-coef", "0.02",
    "--stop.target-return", "19.8", "--stop.env-steps", "400k",
]  # fmt: skip
TURNS = [
    "--sampling.rollout-length", "32", "--env.agent-id", "true",
    "--stop.target-return", "19.5", "--stop.env-steps", "400k",
]  # fmt: skip
PERFECT, CHANCE = 20, 10


def run(folder, *words):
    done = run_forked(command(*words), cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """A folder with the environments in a file."""
    shutil.copy(Path(agent_envs.__file__), tmp_path)
    return tmp_path


def check_counts(folder):
    """The rows of a run that has ended add up. Returns the share of rows that are steps of agents."""
    status = json.loads((folder / "status.json").read_text())
    ledger = status["ledger"]
    assert ledger["sampled"] == sum(ledger[name] for name in ("trained", "skipped", "discarded", "in_flight"))
    assert ledger["trained"] > 0
    return status["env_steps"] / ledger["trained"]


def check_words(folder, trained_line):
    """Every output says which steps a number counts: two agents act in every step of the environment."""
    status, last = json.loads((folder / "run/status.json").read_text()), rows(folder / "run")[-1]
    steps, others = status["env_steps"], status["environment_steps"]
    assert last["charts/environment_steps"] == others
    assert steps - 200 <= 2 * others <= steps + 200, "the last actions of a batch may have no outcome yet"
    assert last["charts/SPS"] == pytest.approx(2 * last["charts/environment_SPS"], rel=0.05)
    assert f"trained {steps:,} agent steps ({others:,} env steps) of pettingzoo/agent_envs:Bits" in trained_line
    assert f"{steps:,} agent steps, {others:,} env steps, " in run(folder, "info", "run")
    log = (folder / "run/log.txt").read_text()
    assert "2 agents: stop.env-steps 400,000 and all other numbers of training steps are agent steps; env steps" in log
    assert f"after {steps:,} agent steps of training" in run(folder, "eval", "run", "--episodes", "2")
    assert "agent steps" in run(folder, "compare", "run")
    run(folder, "report", "run")
    assert "env steps/s" in (folder / "run/report.html").read_text()


def test_training_of_agents_that_act_together_learns_resumes_and_evaluates(folder):
    target = "pettingzoo/agent_envs:Bits"
    trained_line = run(folder, "train", target, "--run.dir", "run", *TOGETHER, *SMALL)
    check_words(folder, trained_line)
    assert 0.9 < check_counts(folder / "run") < 1  # 20 of 21 rows; the others are resets
    last = rows(folder / "run")[-1]
    assert last["charts/episodic_return"] >= 19.8 > CHANCE, "it did not learn in 400,000 steps"
    assert last["charts/episodic_length"] == 20
    assert {"info/return_a", "info/return_b"} <= set(last)
    result = json.loads(run(folder, "eval", "run", "--episodes", "20", "--json"))
    assert result["mean"] > 17
    assert result["lengths"] == [20] * 20
    assert result["mean"] == pytest.approx((result["infos"]["return_a"] + result["infos"]["return_b"]) / 2)
    before = last["env_steps"]
    more = ["--stop.target-return", "none", "--stop.env-steps", str(before + 4_000)]
    run(folder, "resume", "run", *more, "--quiet")
    assert rows(folder / "run")[-1]["env_steps"] >= before + 4_000
    check_counts(folder / "run")


@pytest.mark.slow
def test_training_of_agents_that_act_in_turns_learns_from_rewards_that_come_later(folder, monkeypatch):
    target = "agent_envs:Turns"  # without the name of the family
    run(folder, "train", target, "--run.dir", "run", *TURNS, *SMALL)
    assert 0.4 < check_counts(folder / "run") < 0.5  # in every second row an agent waits
    result = json.loads(run(folder, "eval", "run", "--episodes", "20", "--json"))
    assert result["mean"] > 17 > CHANCE
    assert result["lengths"] == [2 * PERFECT] * 20
    checked = json.loads(run(folder, "check-env", target, "--seconds", "0.5", "--json"))
    assert not checked["bad"]
    monkeypatch.chdir(folder)
    assert played(sfactory.load_policy(folder / "run"), agent_envs.Turns()) > 17


def played(policy, env):
    """Mean return of the agents in an episode of a loop with PettingZoo's own interface."""
    env.reset(seed=1)
    returns = dict.fromkeys(env.possible_agents, 0.0)
    for agent in env.agent_iter():
        obs, reward, terminated, truncated, _ = env.last()
        returns[agent] += reward
        env.step(None if terminated or truncated else int(policy.act(obs, agent=agent)))
    return np.mean(list(returns.values()))


@pytest.mark.usefixtures("forked", "envpool_loaded")
@pytest.mark.parametrize(
    "target", ["pettingzoo/mpe/simple_spread", pytest.param("envpool/ConnectFour-v1", marks=pytest.mark.envpool)]
)
def test_training_of_known_environments_with_several_agents(tmp_path, target):
    options = {"stop": {"env_steps": 700}, "log": {"quiet": True, "every_updates": 1}}
    run_dir = trained(tmp_path / "run", target, checkpoint={"exact": False}, **options)
    assert 0 < check_counts(run_dir) <= 1
    last = rows(run_dir)[-1]
    assert last["charts/updates"] >= 2
    assert np.isfinite(last["losses/policy_loss"])
    evaluation = sfactory.evaluate(run_dir, episodes=4)
    assert len(evaluation.returns) == 4
    assert len([name for name in evaluation.infos if name.startswith("return_")]) == (3 if "spread" in target else 2)


@pytest.mark.slow
def test_training_of_pictures_of_agents_ends_with_a_video(tmp_path):
    """The preset of a game whose pictures are made smaller, with seven pistons."""
    tiny = ["--env.settings.n-pistons", "7", "--env.settings.max-cycles", "10", "--stop.env-steps", "200"]
    run(tmp_path, "train", "pettingzoo/butterfly/pistonball", "--run.dir", "run", *tiny, "--sampling.num-samplers", "1")
    assert 0.8 < check_counts(tmp_path / "run") <= 1
    assert "picture 2x76x20 uint8" in (tmp_path / "run" / "log.txt").read_text()
    result = json.loads(run(tmp_path, "eval", "run", "--episodes", "2", "--video", "film.mp4", "--json"))
    assert result["lengths"] == [10, 10]
    assert (tmp_path / "film.mp4").stat().st_size > 1000
