"""The end of a run, as the supervisor sees it: the last row is held until the evaluation it shall tell has come."""

import threading
import time
from types import SimpleNamespace

import pytest

from sfactory.config import Config, Env, Eval, Sampling
from sfactory.envs import make_spec
from sfactory.memory import words
from sfactory.metrics import Board
from sfactory.workers.record import Outcome
from sfactory.workers.supervisor import Supervisor
from sfactory.workers.telemetry import Telemetry
from sfactory.workers.wiring import OUTCOME, TARGET_REACHED, Plan, Shared


class FakeRecord:
    """Notes what it is told."""

    def __init__(self):
        self.board, self.taken, self.writers = Board(), [], SimpleNamespace(log=print)

    def take(self, message):
        self.taken.append(message)

    def tell(self, shared):
        pass

    def close_book(self, ledger):
        pass


@pytest.fixture
def supervisor(tmp_path):
    config = Config(env=Env("gymnasium/CartPole-v1"), eval=Eval(every=100), sampling=Sampling(1, 1, 2, 4))
    supervisor = Supervisor(
        Plan(config, make_spec(config.env.name), str(tmp_path), 0),
        FakeRecord(),
    )
    supervisor.shared = Shared.create(supervisor.plan)
    supervisor.signals = SimpleNamespace(stop=0)
    return supervisor


ROWS = [("learner", "learner", {"env_steps": steps}) for steps in (100, 200, 300)]
SCORE = ("eval", "evaluator", {"eval/env_steps": 300})


def test_a_last_row_that_comes_before_the_end_is_seen_waits_for_its_evaluation(supervisor):
    """A fast disk or a busy machine: the learner reached its target, saved and told its last row within one tick."""
    supervisor.telemetry.messages.append(ROWS[0])
    supervisor._record()
    assert supervisor.record.taken == ROWS[:1], "while it trains nothing waits"
    words.store(supervisor.shared.progress, OUTCOME, TARGET_REACHED)
    supervisor.telemetry.messages.extend(ROWS[1:])
    supervisor._record()
    assert supervisor.record.taken == ROWS[:2], "the newest one is held"
    supervisor.telemetry.messages.append(SCORE)
    supervisor._stop(Outcome("finished", 0, ""))
    assert supervisor.record.taken == [*ROWS[:2], SCORE, ROWS[2]]


def test_the_last_row_is_not_lost_though_its_evaluation_never_comes(supervisor):
    words.store(supervisor.shared.progress, OUTCOME, TARGET_REACHED)
    supervisor.telemetry.messages.extend(ROWS)
    supervisor._record()
    supervisor._stop(Outcome("finished", 0, ""))
    assert supervisor.record.taken == ROWS


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
    assert telemetry.take() == ROWS[:1]
    assert 0.4 < time.monotonic() - begun < 4.0, "no longer than it takes"
