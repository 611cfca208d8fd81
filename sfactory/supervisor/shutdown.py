"""Stop the workers at the end of a run, wait for the last checkpoint and evaluation, and complete the record."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sfactory.errors import Exit
from sfactory.monitor.messages import LEARNER, Message
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.supervisor.exit_rules import add_last_save
from sfactory.supervisor.signals import SECOND_SIGNAL
from sfactory.supervisor.worker_process import WorkerProcess
from sfactory.workers.names import POLICY, evaluator_name, learner_name
from sfactory.workers.shared import Phase, StopOrder

if TYPE_CHECKING:
    from sfactory.supervisor.supervisor import Supervisor

EXIT_S = 2.0  # samplers and inference, after the stop order
CLOSE_S = 5.0  # a sampler that closes its environments: without closing another one
CLOSE_ALL_S = 20.0  # a sampler that closes its environments: in all
SAVE_S = 30.0  # the learner: finish the update, save a checkpoint
EVALUATION_S = 60.0  # the evaluator, at the end of a finished run
SILENT_FRACTION = 0.9  # of the stall timeout without a heartbeat: the learner is not waited for
ORDERLY = (Exit.FINISHED, Exit.REQUEUE, Exit.INTERRUPTED, Exit.TERMINATED)
"""Outcomes for which a checkpoint is expected at the end."""


class LastRow:
    """Passes telemetry to the recorder, but holds back the learner's newest row.

    The last row of a run reports the evaluation of the last policy, which ends after the row was sent.
    """

    def __init__(self, recorder: RunRecorder) -> None:
        self.recorder = recorder
        self._rows: list[Message] = []

    def handle(self, messages: list[Message]) -> None:
        """Record all messages but the newest row."""
        for message in messages:
            if message[0] == LEARNER:
                self._rows.append(message)
            else:
                self.recorder.handle(message)
        while len(self._rows) > 1:
            self.recorder.handle(self._rows.pop(0))

    def release(self) -> None:
        """Record the newest row."""
        for row in self._rows:
            self.recorder.handle(row)
        self._rows = []


def stop_workers(supervisor: Supervisor, outcome: Outcome) -> None:
    """Order all workers to stop, wait for them, and add to the outcome what happened meanwhile. No restarts."""
    shared, recorder = supervisor.shared, supervisor.recorder
    # Exit 10 at this point: the run's folder belongs to another run now, so no checkpoint may be written there.
    save = supervisor.updates >= 0 and outcome.code != Exit.STORAGE
    shared.supervisor.stop = StopOrder.FINISH if save else StopOrder.NOW
    shared.ring_all()
    try:
        if not _wait_for_exits(supervisor, outcome):
            _end_by_second_signal(supervisor, outcome)
            return
        add_last_save(outcome, shared.learner[POLICY].outcome)
        recorder.record_row_counts(shared.slot_table.row_counts(), shared.rows_by_task())
        supervisor.telemetry.wait_until_read()
        supervisor.last_row.handle(supervisor.telemetry.drain())
    finally:
        supervisor.last_row.release()


def _wait_for_exits(supervisor: Supervisor, outcome: Outcome) -> bool:
    """Wait until all workers have exited and kill those that take too long; False if a second signal arrived."""
    start, signals_before = time.monotonic(), supervisor.signals.stop_count
    learner, evaluator = learner_name(), evaluator_name()
    limits = {learner: EXIT_S if _learner_is_silent(supervisor) else SAVE_S, evaluator: 0.0}
    closing = Closing(supervisor)
    while supervisor.processes:
        supervisor.wait()
        supervisor.last_row.handle(supervisor.telemetry.drain())
        for worker in list(supervisor.processes.values()):
            if worker.exit_code is not None:
                if worker.name == learner and worker.exit_code != 0 and outcome.code in ORDERLY:
                    last_line = worker.output.last_line()
                    outcome.sentence += f"; the learner failed before it exited{last_line and ': '}{last_line}"
                    if outcome.code == Exit.FINISHED:
                        outcome.name, outcome.code = Exit.WORKER_LOST.outcome, int(Exit.WORKER_LOST)
                supervisor.reap(worker)
        signals = supervisor.signals.stop_count
        if signals > max(signals_before, 1):
            return False
        evaluate = outcome.code == Exit.FINISHED and signals == signals_before and not _evaluated(supervisor)
        limits[evaluator] = EVALUATION_S if evaluate else 0.0
        seconds = time.monotonic() - start
        for worker in list(supervisor.processes.values()):
            if seconds > limits.get(worker.name, EXIT_S) and not closing.goes_on(worker, seconds):
                worker.kill()
    if outcome.code == Exit.FINISHED and not _evaluated(supervisor):
        reason = f"the evaluator failed or took longer than {EVALUATION_S:g} s"
        supervisor.recorder.writers.log(f"the last policy was not evaluated ({reason}); run `sfactory eval`")
    return True


def _end_by_second_signal(supervisor: Supervisor, outcome: Outcome) -> None:
    """Say so in the outcome; a finished run whose last update is not saved yet has been ended by the signal."""
    by_signal = supervisor.signals.outcome()
    if outcome.code == Exit.FINISHED and learner_name() in supervisor.processes and by_signal is not None:
        outcome.name, outcome.code = by_signal.name, by_signal.code
    outcome.sentence += SECOND_SIGNAL


class Closing:
    """Samplers that close their environments one after the other: they may take longer, as long as they get on."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.deadlines = supervisor.deadlines
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}  # heartbeat, and seconds when it changed

    def goes_on(self, worker: WorkerProcess, seconds: float) -> bool:
        """Whether it is a sampler that closes environments, within its limits."""
        if self.deadlines.phase(worker.name) != Phase.CLOSE or seconds > CLOSE_ALL_S:
            return False
        heartbeat = self.deadlines.heartbeat(worker.name)
        before, at = self._seen.get(worker.name, (None, seconds))
        if heartbeat != before:
            at = seconds
        self._seen[worker.name] = heartbeat, at
        return seconds - at <= CLOSE_S


def _learner_is_silent(supervisor: Supervisor) -> bool:
    """Whether the learner has had no heartbeat for so long that it is not expected to save."""
    learner = supervisor.processes.get(learner_name())
    limit = SILENT_FRACTION * supervisor.config.run.stall_timeout
    return learner is not None and supervisor.clock - learner.heartbeat_at > limit


def _evaluated(supervisor: Supervisor) -> bool:
    """Whether the learner has exited and no evaluation of its last checkpoint is due."""
    checkpoint = supervisor.shared.learner[POLICY].checkpoint
    due = supervisor.run_spec.evaluation_due(supervisor.recorder.board.evaluated, checkpoint)
    return learner_name() not in supervisor.processes and not due
