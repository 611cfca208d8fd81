"""Run a worker: what it reports when its environments cannot be built, and how a spare waits."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from sfactory.errors import CheckpointError, Exit, LearnerLost, SettingError
from sfactory.run.outcome import Outcome
from sfactory.supervisor import lockstep_run
from sfactory.supervisor import run_worker as module
from sfactory.workers.shared import RunSpec, StopOrder
from sfactory.workers.worker import QueueSink

QUEUE_BYTES = 1 << 20


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_run_sampler_reports_an_exception_of_any_length(monkeypatch, capfd, size):
    """A message that is larger than the queue was lost, and the last line began within the text."""
    from faster_fifo import Queue

    def fails(*_):
        raise RuntimeError(f"no licence {'x' * size} at last")

    monkeypatch.setattr("sfactory.workers.sampler.Sampler", fails)
    monkeypatch.setattr(module, "_set_oom_score", lambda score: None)
    sink = QueueSink(Queue(max_size_bytes=QUEUE_BYTES))
    assert module._run_sampler(1, None, sink, 0) == Exit.ENVIRONMENT
    assert sink.dropped == 0
    kind, name, text = sink.queue.get(timeout=10)
    line, _, trace = text.partition("\n")
    assert (kind, name) == ("fault", "sampler-1")
    assert line.startswith("sampler-1: RuntimeError: no licence xxx")
    assert line.endswith("xxx at last")
    assert len(line) < 1000
    assert "in fails" in trace
    assert len(trace) < 30_000
    assert ("characters) ..." in line) == (size > 1000)
    last = capfd.readouterr().err.splitlines()[-1]
    assert line == f"sampler-1: {last}"


LOST = [(LearnerLost("rank 1 is gone"), 7), (LearnerLost("rank 1 shows no sign of life", Exit.STALLED), 8)]
REFUSED = [(CheckpointError("other shapes"), 4), (SettingError("another optim.lr"), 2)]


@pytest.mark.parametrize(("error", "code"), [*LOST, *REFUSED])
def test_run_learner_exits_with_the_code_of_what_ends_it_before_it_trains(monkeypatch, capfd, error, code):
    def fails(*_):
        raise error

    monkeypatch.setattr(module, "keep_memory", lambda: None)
    monkeypatch.setattr("sfactory.workers.learner.Learner", fails)
    assert module._run_learner(0, None, None) == code
    assert capfd.readouterr().err == f"{error}\n"


@pytest.mark.parametrize("method", ["run", "leave"])
@pytest.mark.parametrize(("error", "code"), LOST)
def test_run_learner_exits_with_7_or_8_if_another_learner_is_lost_while_it_trains(
    monkeypatch, capfd, method, error, code
):
    def fails():
        raise error

    learner = SimpleNamespace(**{"run": lambda: None, "leave": lambda: None, method: fails})
    monkeypatch.setattr(module, "keep_memory", lambda: None)
    monkeypatch.setattr("sfactory.workers.learner.Learner", lambda *_: learner)
    assert module._run_learner(0, None, None) == code
    assert capfd.readouterr().err == f"{error}\n"


@pytest.mark.parametrize(("error", "code"), LOST)
def test_lockstep_ends_with_7_or_8_if_another_learner_is_lost(monkeypatch, error, code):
    def fails(*_):
        raise error

    run = SimpleNamespace(
        sink=SimpleNamespace(drain=list),
        shared=SimpleNamespace(slot_table=SimpleNamespace(row_counts=lambda: None), rows_by_task=dict),
        close=lambda: None,
    )
    monkeypatch.setattr(lockstep_run, "Lockstep", lambda *_: run)
    monkeypatch.setattr(lockstep_run, "SharedState", lambda *_: None)
    monkeypatch.setattr(lockstep_run, "_prepare", lambda *_: None)
    monkeypatch.setattr(lockstep_run, "_train", fails)
    ends = []
    lockstep_run.train(RunSpec(None, None, "", 0), None, SimpleNamespace(end=ends.append))
    assert [end.outcome for end in ends] == [Outcome.of(Exit(code), str(error))]


@pytest.fixture
def shared():
    return SimpleNamespace(
        run_spec=SimpleNamespace(workers=("learner", "inference")),
        in_charge=np.zeros(2, np.int64),
        supervisor=SimpleNamespace(stop=StopOrder.RUN),
    )


@pytest.mark.parametrize("end", ["its turn", "the end of the run"])
def test_spare_waits_for_its_turn_or_the_end_of_the_run(monkeypatch, shared, end):
    scores, result = [], []
    monkeypatch.setattr(module, "_set_oom_score", scores.append)
    assert module._in_charge("inference", shared, 0), "the first generation does not wait"
    assert not scores
    thread = threading.Thread(target=lambda: result.append(module._in_charge("inference", shared, 3)))
    thread.start()
    time.sleep(5 * module.SPARE_POLL_S)
    assert not result
    assert scores == [1000], "where memory runs out, it is killed first"
    if end == "its turn":
        shared.in_charge[1] = 3
    else:
        shared.supervisor.stop = StopOrder.FINISH
    thread.join(20)
    assert result == [end == "its turn"]
    assert scores[1:] == [int(module.OOM_SCORE.read_text())]
