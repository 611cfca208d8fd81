"""The supervisor with fake workers: recording at the end of a run, telemetry, deadlines, faults of the evaluator."""

import os
import threading
import time
from types import SimpleNamespace

import pytest

from sfactory.config import Config, Env, Eval, Sampling
from sfactory.envs import make_spec
from sfactory.monitor.board import Board
from sfactory.run.outcome import Outcome
from sfactory.shm import atomics
from sfactory.supervisor import supervisor as module
from sfactory.supervisor.exit_rules import EVALUATOR_EXITS
from sfactory.supervisor.shutdown import stop_workers
from sfactory.supervisor.supervisor import Supervisor
from sfactory.supervisor.telemetry import Telemetry
from sfactory.workers.names import evaluator_name, learner_name, sampler_name
from sfactory.workers.shared import LearnerOutcome, Phase, RunSpec, SharedState, StopOrder, heartbeat_word


class FakeRecorder:
    """Keeps the messages it receives."""

    def __init__(self):
        self.board, self.messages, self.writers = Board(), [], SimpleNamespace(log=print)

    def handle(self, message):
        self.messages.append(message)

    training_return = float("nan")

    def record_row_counts(self, counts):
        pass


@pytest.fixture
def supervisor(tmp_path):
    config = Config(env=Env("gymnasium/CartPole-v1"), eval=Eval(every=100), sampling=Sampling(1, 1, 2, 4))
    supervisor = Supervisor(
        RunSpec(config, make_spec(config.env.name), str(tmp_path), 0),
        FakeRecorder(),
        SimpleNamespace(stop_count=0),
    )
    supervisor.shared = SharedState.create(supervisor.run_spec)
    return supervisor


ROWS = [("learner", learner_name(), {"env_steps": steps}) for steps in (100, 200, 300)]
EVALUATION = ("eval", evaluator_name(), {"eval/env_steps": 300})


def test_supervisor_holds_the_last_row_until_its_evaluation_arrives(supervisor):
    """The learner may reach its target, save and send its last row within one tick."""
    supervisor.telemetry.messages.append(ROWS[0])
    supervisor._record()
    assert supervisor.recorder.messages == ROWS[:1], "no row is held while the learner trains"
    supervisor.shared.learner[0].outcome = LearnerOutcome.STOP_RULE
    supervisor.telemetry.messages.extend(ROWS[1:])
    supervisor._record()
    assert supervisor.recorder.messages == ROWS[:2], "the newest row is held"
    supervisor.telemetry.messages.append(EVALUATION)
    stop_workers(supervisor, Outcome("finished", 0, ""))
    assert supervisor.recorder.messages == [*ROWS[:2], EVALUATION, ROWS[2]]


def test_shutdown_records_the_last_row_without_an_evaluation(supervisor):
    supervisor.shared.learner[0].outcome = LearnerOutcome.STOP_RULE
    supervisor.telemetry.messages.extend(ROWS)
    supervisor._record()
    stop_workers(supervisor, Outcome("finished", 0, ""))
    assert supervisor.recorder.messages == ROWS


class SlowTelemetry(Telemetry):
    """Its threads start to read late, as on a busy machine."""

    def _read(self, queue, reaped):
        time.sleep(0.5)
        super()._read(queue, reaped)


def test_telemetry_wait_until_read_waits_for_slow_readers():
    telemetry, reaped = SlowTelemetry(), threading.Event()
    telemetry.listen(reaped).put(ROWS[0])
    reaped.set()
    start = time.monotonic()
    telemetry.wait_until_read(5.0)
    assert telemetry.drain() == ROWS[:1]
    assert 0.4 < time.monotonic() - start < 4.0, "no longer than needed"


def fake_processes(supervisor, monkeypatch):
    """Workers are this process; returns the pids that were killed."""
    killed = []
    monkeypatch.setattr(module, "spawn", lambda message: SimpleNamespace(pid=os.getpid(), exitcode=None))
    monkeypatch.setattr(module, "kill_group", killed.append)
    monkeypatch.setattr(module, "request_stack_dump", lambda pid: None)
    supervisor.orphan_killer = SimpleNamespace(watch=lambda pid: None)
    return killed


def test_restarted_sampler_has_no_deadline_before_its_first_heartbeat(supervisor, monkeypatch):
    """The previous generation exited inside an environment, and loading may take longer than `env.step_timeout`."""
    row = supervisor.run_spec.workers.index(sampler_name(0))
    atomics.store(supervisor.shared.heartbeat, row, heartbeat_word(7, Phase.ENVIRONMENT))
    killed = fake_processes(supervisor, monkeypatch)
    for name in supervisor.run_spec.workers:
        supervisor._start(name, 1)
    supervisor._check_deadlines()
    supervisor.clock = supervisor.updated_at = 10 * supervisor.config.env.step_timeout
    supervisor._check_deadlines()
    assert not killed
    atomics.store(supervisor.shared.heartbeat, row, heartbeat_word(1, Phase.ENVIRONMENT))
    supervisor._check_deadlines()
    supervisor.clock = supervisor.updated_at = 12 * supervisor.config.env.step_timeout
    supervisor._check_deadlines()
    assert killed == [os.getpid()], "its own heartbeat counts"
    for worker in supervisor.processes.values():
        worker.reaped.set()
        os.close(worker.pidfd)


def test_supervisor_abandons_an_evaluator_only_if_it_exits_repeatedly_without_a_result(supervisor):
    started, name = [], evaluator_name()
    supervisor._start = lambda name, generation: started.append(generation)

    def exits():
        supervisor._record()
        assert supervisor._on_exit(SimpleNamespace(name=name, generation=len(started)), -9) is None

    for number in range(3 * EVALUATOR_EXITS):  # one result between any two exits
        supervisor.recorder.board.evaluated = number
        exits()
    assert len(started) == 3 * EVALUATOR_EXITS
    for _ in range(EVALUATOR_EXITS - 1):
        exits()
    assert len(started) == 4 * EVALUATOR_EXITS - 2, "it is not restarted after the last exit"
    messages = [text for _, _, text in supervisor.recorder.messages]
    assert "no more evaluations, training continues" in messages[-1]
    assert all("restarted" in text for text in messages[:-1])


def test_supervisor_forgets_faults_of_workers_after_an_update(supervisor):
    supervisor.faults.update({sampler_name(0): 2, evaluator_name(): 3})
    supervisor.shared.learner[0].updates = 1
    supervisor._record()
    assert supervisor.faults[sampler_name(0)] == 0
    assert supervisor.faults[evaluator_name()] == 3


@pytest.mark.parametrize(
    ("outcome", "word", "code"), [("finished", "worker lost", 7), ("interrupted", "interrupted", 130)]
)
def test_shutdown_reports_a_learner_that_fails_before_it_exits(supervisor, monkeypatch, outcome, word, code):
    ended = Outcome(outcome, {"finished": 0, "interrupted": 130}[outcome], "the stop rule was reached")
    learner = SimpleNamespace(name=learner_name(), exit_code=1, pidfd=-1, heartbeat_at=0.0)
    supervisor.processes[learner.name] = learner
    supervisor.reap = lambda worker: supervisor.processes.pop(worker.name)
    supervisor.run_spec.debug_dir.mkdir()
    (supervisor.run_spec.debug_dir / "learner.txt").write_text("Traceback ...\nOSError: gone\n")
    stop_workers(supervisor, ended)
    assert (ended.name, ended.code) == (word, code)
    assert ended.sentence == "the stop rule was reached; the learner failed before it exited: OSError: gone"
    assert supervisor.shared.supervisor.stop == StopOrder.NOW, "no update was finished, so there is nothing to save"
