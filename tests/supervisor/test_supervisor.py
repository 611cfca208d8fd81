"""The end of a run, as the supervisor sees it: the last row is held until the evaluation it shall tell has come."""

import os
import threading
import time
from types import SimpleNamespace

import pytest

from sfactory.config import Config, Env, Eval, Sampling
from sfactory.envs import make_spec
from sfactory.monitor.board import Board
from sfactory.run.recorder import Outcome
from sfactory.shm import atomics
from sfactory.supervisor import supervisor as module
from sfactory.supervisor.supervisor import Supervisor
from sfactory.supervisor.telemetry import Telemetry
from sfactory.workers.shared import ENVIRONMENT, OUTCOME, TARGET_REACHED, RunSpec, SharedState, heartbeat_word


class FakeRecorder:
    """Notes what it is told."""

    def __init__(self):
        self.board, self.taken, self.writers = Board(), [], SimpleNamespace(log=print)

    def handle(self, message):
        self.taken.append(message)

    training_return = float("nan")

    def record_row_counts(self, ledger):
        pass


@pytest.fixture
def supervisor(tmp_path):
    config = Config(env=Env("gymnasium/CartPole-v1"), eval=Eval(every=100), sampling=Sampling(1, 1, 2, 4))
    supervisor = Supervisor(
        RunSpec(config, make_spec(config.env.name), str(tmp_path), 0),
        FakeRecorder(),
    )
    supervisor.shared = SharedState.create(supervisor.run_spec)
    supervisor.signals = SimpleNamespace(stop=0)
    return supervisor


ROWS = [("learner", "learner", {"env_steps": steps}) for steps in (100, 200, 300)]
SCORE = ("eval", "evaluator", {"eval/env_steps": 300})


def test_a_last_row_that_comes_before_the_end_is_seen_waits_for_its_evaluation(supervisor):
    """A fast disk or a busy machine: the learner reached its target, saved and told its last row within one tick."""
    supervisor.telemetry.messages.append(ROWS[0])
    supervisor._record()
    assert supervisor.recorder.taken == ROWS[:1], "while it trains nothing waits"
    atomics.store(supervisor.shared.progress, OUTCOME, TARGET_REACHED)
    supervisor.telemetry.messages.extend(ROWS[1:])
    supervisor._record()
    assert supervisor.recorder.taken == ROWS[:2], "the newest one is held"
    supervisor.telemetry.messages.append(SCORE)
    supervisor._stop(Outcome("finished", 0, ""))
    assert supervisor.recorder.taken == [*ROWS[:2], SCORE, ROWS[2]]


def test_the_last_row_is_not_lost_though_its_evaluation_never_comes(supervisor):
    atomics.store(supervisor.shared.progress, OUTCOME, TARGET_REACHED)
    supervisor.telemetry.messages.extend(ROWS)
    supervisor._record()
    supervisor._stop(Outcome("finished", 0, ""))
    assert supervisor.recorder.taken == ROWS


class Late(Telemetry):
    """Its readers come late: the machine is busy."""

    def _read(self, queue, over):
        time.sleep(0.5)
        super()._read(queue, over)


def test_what_was_put_last_is_read_however_late_its_reader_is():
    telemetry, over = Late(), threading.Event()
    telemetry.listen(over).put(ROWS[0])
    over.set()
    begun = time.monotonic()
    telemetry.settle(5.0)
    assert telemetry.drain() == ROWS[:1]
    assert 0.4 < time.monotonic() - begun < 4.0, "no longer than it takes"


def test_a_newborn_is_not_judged_by_its_predecessors_last_beat(supervisor, monkeypatch):
    """Which died inside an environment; the newborn may need longer to load than a step may take."""
    row = supervisor.run_spec.workers.index("sampler-0")
    atomics.store(supervisor.shared.heartbeat, row, heartbeat_word(7, ENVIRONMENT))
    killed = []
    monkeypatch.setattr(module, "spawn", lambda birth: SimpleNamespace(pid=os.getpid(), exitcode=None))
    monkeypatch.setattr(module, "kill_group", killed.append)
    monkeypatch.setattr(module, "request_stack_dump", lambda pid: None)
    supervisor.orphan_killer = SimpleNamespace(watch=lambda pid: None)
    for name in supervisor.run_spec.workers:
        supervisor._spawn(name, 1)
    supervisor._deadlines()
    supervisor.awake = supervisor.progress_at = 10 * supervisor.config.env.step_timeout
    supervisor._deadlines()
    assert not killed
    atomics.store(supervisor.shared.heartbeat, row, heartbeat_word(1, ENVIRONMENT))
    supervisor._deadlines()
    supervisor.awake = supervisor.progress_at = 12 * supervisor.config.env.step_timeout
    supervisor._deadlines()
    assert killed == [os.getpid()], "its own beat counts"
    for worker in supervisor.processes.values():
        worker.over.set()
        os.close(worker.pidfd)
