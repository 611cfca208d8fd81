"""The evaluator plays what is due, the same games every time, and believes no checkpoint it has not verified."""

import subprocess
import sys

import pytest

from sfactory.config import Config, Env, Eval, Model
from sfactory.envs import make_spec
from sfactory.learning.network import build_model
from sfactory.run import checkpoint, checkpoint_writer
from sfactory.workers.evaluator import Evaluator, PolicyPlayer
from sfactory.workers.shared import RunSpec
from sfactory.workers.worker import ListSink


@pytest.fixture
def run_spec(tmp_path):
    config = Config(
        env=Env("gymnasium/CartPole-v1"), model=Model(hidden=(8,)), eval=Eval(every=100, episodes=4, greedy=True)
    )
    return RunSpec(config, make_spec(config.env.name), str(tmp_path), 0)


def save(run_spec, env_steps, shift=0.0):
    model = build_model(run_spec.config, run_spec.spec)
    for parameter in model.parameters():
        parameter.data += shift
    contents = checkpoint.Contents({"env_steps": env_steps}, {"model": model.state_dict()})
    return checkpoint_writer.save(run_spec.debug_dir.parent, contents, keep=3)


def test_an_evaluation_is_due_when_a_multiple_lies_between(run_spec):
    assert not run_spec.evaluation_due(0, 99)
    assert run_spec.evaluation_due(0, 100)
    assert run_spec.evaluation_due(0, 1234)
    assert not run_spec.evaluation_due(1234, 1299)
    assert run_spec.evaluation_due(1234, 1300)
    never = RunSpec(Config(env=run_spec.config.env), run_spec.spec, run_spec.run_dir, 0)
    assert not never.evaluation_due(0, 10**9)


def test_only_checkpoints_beyond_the_next_multiple_are_played_and_each_once(run_spec):
    evaluation = Evaluator(run_spec, ListSink(), evaluated=0)
    assert not evaluation.step()
    save(run_spec, 90)
    assert not evaluation.step()
    save(run_spec, 110)
    save(run_spec, 320)  # it was slow: 110 is passed over
    assert evaluation.step()
    assert not evaluation.step()
    ((kind, worker, row),) = evaluation.sink.drain()
    assert (kind, worker, row["eval/env_steps"]) == ("eval", "evaluator", 320)
    assert row["eval/episodic_return"] == row["eval/episodic_length"] >= 8  # a point for every step


def test_after_a_death_it_goes_on_where_results_end(run_spec):
    save(run_spec, 320)
    assert not Evaluator(run_spec, ListSink(), evaluated=310).step()
    assert Evaluator(run_spec, ListSink(), evaluated=210).step()


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(run_spec):
    path = save(run_spec, 110)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    evaluation = Evaluator(run_spec, ListSink(), evaluated=0)
    assert not evaluation.step()
    assert path.exists()
    assert evaluation.sink.drain() == []
    save(run_spec, 130)
    assert evaluation.step()


def test_every_evaluation_plays_the_same_games_with_the_weights_of_its_checkpoint(run_spec):
    def scores(evaluation):
        assert evaluation.step()
        ((_, _, row),) = evaluation.sink.drain()
        return {name: value for name, value in row.items() if name not in ("eval/env_steps", "eval/seconds")}

    evaluation = Evaluator(run_spec, ListSink(), evaluated=0)
    save(run_spec, 100, shift=0.5)
    one = scores(evaluation)
    save(run_spec, 200)
    two = scores(evaluation)
    save(run_spec, 300, shift=0.5)
    assert scores(evaluation) == one != two


def test_of_several_tasks_each_has_its_return_and_the_curve_is_their_mean(tmp_path):
    tasks = "gymnasium/CartPole-v1", "gymnasium/CartPole-v0"
    config = Config(env=Env(",".join(tasks)), model=Model(hidden=(8,)), eval=Eval(every=100, episodes=3))
    _, _, row = PolicyPlayer(RunSpec(config, make_spec(tasks[0]), str(tmp_path), 0)).evaluate(100)
    each = [row[f"eval/episodic_return/{task}"] for task in tasks]
    assert row["eval/episodic_return"] == pytest.approx(sum(each) / 2)
    assert row["eval/episodic_length"] == row["eval/episodic_return"] >= row["eval/iqm"] - 50


HANG = """
import time
from sfactory.workers.evaluator import Watchdog
dog = Watchdog(0.4)
for _ in range(8):  # heard every 0.1 s: nothing happens for twice its time
    dog.hear()
    time.sleep(0.1)
dog.rest()
time.sleep(0.8)  # at rest it does not bite
print("alive", flush=True)
dog.hear()
def an_environment_that_hangs():
    time.sleep(60)
an_environment_that_hangs()
"""


def test_what_hangs_is_ended_and_its_stack_is_told():
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (1, "alive\n")
    assert "Timeout" in done.stderr
    assert "an_environment_that_hangs" in done.stderr


def test_the_watchdog_listens_while_games_are_played_and_rests_between_them(run_spec, monkeypatch):
    from sfactory.workers import evaluator

    said = []
    monkeypatch.setattr(evaluator.faulthandler, "dump_traceback_later", lambda *_, **how: said.append("armed"))
    monkeypatch.setattr(evaluator.faulthandler, "cancel_dump_traceback_later", lambda: said.append("at rest"))
    evaluation = Evaluator(run_spec, ListSink(), evaluated=0)
    evaluation.step()
    assert said == [], "there was nothing to play"
    save(run_spec, 110)
    evaluation.step()
    assert (said[0], said[-1]) == ("armed", "at rest")


def test_an_evaluator_that_only_dies_is_given_up_and_one_with_results_never(run_spec):
    from types import SimpleNamespace

    from sfactory.monitor.board import Board
    from sfactory.supervisor.supervisor import EVALUATORS, Supervisor

    told, born = [], []
    supervisor = Supervisor(run_spec, SimpleNamespace(board=Board(), handle=told.append))
    supervisor._spawn = lambda name, generation: born.append(generation)

    def dies():
        assert supervisor._on_exit(SimpleNamespace(name="evaluator", generation=len(born)), -9) is None

    for number in range(3 * EVALUATORS):  # one result between any two deaths
        supervisor.recorder.board.evaluated = number
        dies()
    assert len(born) == 3 * EVALUATORS
    for _ in range(EVALUATORS - 1):
        dies()
    assert len(born) == 4 * EVALUATORS - 2, "the last death is not answered"
    assert "no more evaluations, training goes on" in told[-1][2]
    assert all("respawned" in text for _, _, text in told[:-1])
