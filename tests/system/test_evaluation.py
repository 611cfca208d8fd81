"""Evaluation during training with real processes: it completes and does not affect training."""

import json
import signal
from itertools import pairwise
from pathlib import Path

import av
import pytest
from forked_processes import ForkedCommand, run_forked
from run_helpers import command, finish, rows, start, steps, wait_for, workers_named

EVERY = ["--eval.every", 3000, "--eval.episodes", 4]


GAMES = """
import gymnasium, os, time
from gymnasium.envs.classic_control import CartPoleEnv

class Calm(CartPoleEnv):
    \"\"\"Sleeps in samplers, so that the evaluator, which has the lowest priority, finds a free core.\"\"\"
    def step(self, action):
        if os.nice(0) != 19:
            time.sleep(0.001)
        return super().step(action)

class Hanging(Calm):
    \"\"\"Hangs in the evaluator alone.\"\"\"
    def step(self, action):
        if os.nice(0) == 19:
            time.sleep(1000)
        return super().step(action)

gymnasium.register("Calm-v0", Calm, max_episode_steps=500)
gymnasium.register("Hanging-v0", Hanging, max_episode_steps=100)
"""


@pytest.fixture
def games(tmp_path, monkeypatch):
    (tmp_path / "games.py").write_text(GAMES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")


def evaluations(run):
    return [row for row in rows(run) if "eval/env_steps" in row]


@pytest.mark.slow
def test_evaluator_completes_although_it_is_killed_once(tmp_path, games):
    run, log = tmp_path / "run", tmp_path / "run" / "log.txt"
    words = ["--sampling.num-samplers", 1, "--optim.lr", 1e-4, "--checkpoint.every-seconds", 1000]
    process = start(run, *words, *EVERY, target="gymnasium/games:Calm-v0", popen=ForkedCommand)
    wait_for(lambda: evaluations(run), seconds=120, process=process)
    (evaluator,) = workers_named(process, "evaluator")
    assert evaluator.nice() == 19
    assert "memfd" not in Path(f"/proc/{evaluator.pid}/maps").read_text(), "it shares no memory"
    evaluator.kill()
    wait_for(lambda: "evaluator exited (killed by SIGKILL; see" in log.read_text(), process=process)
    before = len(evaluations(run))
    wait_for(lambda: len(evaluations(run)) > before, seconds=120, process=process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert "); restarted" in log.read_text()
    found, axis = evaluations(run), [row["env_steps"] for row in rows(run)]
    at = [int(row["eval/env_steps"]) for row in found]
    assert all(one // 3000 < two // 3000 for one, two in pairwise(at))
    assert all(row["eval/env_steps"] <= row["env_steps"] for row in found)
    assert all(row["eval/episodic_return"] == row["eval/episodic_length"] for row in found)
    assert axis == sorted(set(axis))
    assert f"evaluation at {at[-1]:,} steps: mean return {found[-1]['eval/episodic_return']:.2f}" in log.read_text()

    words = ["--stop.env-steps", axis[-1] + 4000]
    done = run_forked(command("resume", run, *words), capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    again = [int(row["eval/env_steps"]) for row in evaluations(run)]
    assert all(one // 3000 < two // 3000 for one, two in pairwise(again)), "no policy is evaluated twice"
    if "the last policy was not evaluated" not in log.read_text():  # on a machine so busy that it takes a minute
        last = rows(run)[-1]["env_steps"]
        assert again[-1] // 3000 == last // 3000 > axis[-1] // 3000, "the last multiple was evaluated"


@pytest.mark.slow
def test_hanging_environment_in_the_evaluator_affects_only_the_evaluation(tmp_path, games):
    run = tmp_path / "run"
    words = ["--env.step-timeout", 4, "--sampling.num-samplers", 1, *EVERY]
    process = start(run, *words, target="gymnasium/games:Hanging-v0", popen=ForkedCommand)
    log = run / "log.txt"
    wait_for(lambda: log.exists() and "evaluator exited (exit code 1" in log.read_text(), seconds=120, process=process)
    before = steps(run)
    wait_for(lambda: steps(run) > before > 3000, process=process)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert "restarted" in log.read_text()
    assert "sampler-0" not in log.read_text()
    words = (run / "debug" / "evaluator.txt").read_text()
    assert "Timeout" in words
    assert "/games.py" in words, "the stack says where"
    assert not evaluations(run)
    assert rows(run)[-1]["faults/evaluator"] >= 1


def lockstep(run, *words):
    args = ["--run.mode", "lockstep", "--stop.env-steps", 6000, "--log.every-updates", 5, "--sampling.num-samplers", 1]
    finish(start(run, *args, *words, popen=ForkedCommand), 0)
    newest = max(path for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def test_lockstep_evaluation_changes_no_bit_of_the_run_and_videos_work(tmp_path):
    plain, watched = lockstep(tmp_path / "a"), lockstep(tmp_path / "b", "--eval.every", 1000, "--eval.episodes", 4)
    assert plain == watched
    at = [row["eval/env_steps"] for row in evaluations(tmp_path / "b")]
    assert len(at) == 6
    assert [int(step) // 1000 for step in at] == [1, 2, 3, 4, 5, 6]
    assert len({row["eval/episodic_return"] for row in evaluations(tmp_path / "b")}) > 2, "the policy changes"
    assert not evaluations(tmp_path / "a")
    film = tmp_path / "game.mp4"
    done = run_forked(
        command("eval", tmp_path / "b", "--episodes", 3, "--video", film, "--json"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (video,) = found["videos"]
    assert video["file"] == str(film)
    assert video["episodic_return"] in found["returns"]
    with av.open(str(film)) as container:
        assert len(list(container.decode(video=0))) == video["length"] + 1
