"""Stop the workers at the end of a run, wait for the last checkpoint and evaluation, and complete the record."""

from __future__ import annotations

import time

from sfactory.errors import Exit
from sfactory.monitor.messages import LEARNER as LEARNER_ROW
from sfactory.monitor.messages import Message
from sfactory.run.checkpoint import size_of_newest
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.supervisor.deadlines import Deadlines
from sfactory.supervisor.exit_rules import add_last_update
from sfactory.supervisor.processes import Processes
from sfactory.supervisor.signals import SECOND_SIGNAL, Signals
from sfactory.supervisor.worker_process import WorkerProcess
from sfactory.workers.names import EVALUATOR, LEARNER, POLICY, SAMPLER, evaluator_name, learner_name, parse_worker
from sfactory.workers.shared import LearnerOutcome, Phase, StopOrder

EXIT_S = 2.0  # samplers and inference, after the stop order
CLOSE_S = 5.0  # a sampler that closes its environments: without closing another one
CLOSE_ALL_S = 20.0  # a sampler that closes its environments: in all
SAVE_S = 30.0  # the learner, while it finishes an update and saves a checkpoint: between two signs of progress
SLOW_DISK = 10e6  # bytes per second at which a large checkpoint may be written: it has more time
EVALUATION_S = 60.0  # the evaluator, at the end of a finished run
SILENT_FRACTION = 0.9  # of the stall timeout without progress: the learner is not waited for
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
            if message[0] == LEARNER_ROW:
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


class Shutdown:
    """Stops the workers of a run that is over. Workers are not restarted any more."""

    def __init__(
        self,
        processes: Processes,
        deadlines: Deadlines,
        recorder: RunRecorder,
        signals: Signals,
        last_row: LastRow,
    ) -> None:
        self.processes, self.deadlines, self.recorder, self.signals = processes, deadlines, recorder, signals
        self.run_spec, self.shared, self.last_row = processes.run_spec, processes.shared, last_row
        self.learner_failed = False  # after the stop order

    def run(self, outcome: Outcome) -> None:
        """Order all workers to stop, wait for them, and add to the outcome what happened meanwhile."""
        saves = not self._is_taken(outcome)
        self.shared.supervisor.stop = StopOrder.FINISH if saves else StopOrder.NOW
        self.shared.ring_all()
        try:
            if not self._wait_for_exits(outcome, saves):
                self._end_by_second_signal(outcome)
                return
            self._add_last_update(outcome)
            self._log_missing_evaluation(outcome)
            self.recorder.record_row_counts(self.shared.slot_table.row_counts(), self.shared.rows_by_task())
            self.processes.telemetry.wait_until_read()
            self.last_row.handle(self.processes.telemetry.drain())
        finally:
            self.last_row.release()

    def _is_taken(self, outcome: Outcome) -> bool:
        """Whether the run's folder belongs to another run, so that no checkpoint may be written there; says so."""
        if problem := self.recorder.keep_folder():
            if outcome.code in ORDERLY:
                outcome.name, outcome.code, outcome.sentence = Exit.STORAGE.outcome, int(Exit.STORAGE), problem
            else:
                outcome.sentence += f"; {problem}"
            return True
        return outcome.code == Exit.STORAGE

    def _wait_for_exits(self, outcome: Outcome, saves: bool) -> bool:
        """Wait until all workers have exited and kill those that take too long; False if a second signal arrived."""
        start, signals_before = time.monotonic(), self.signals.stop_count
        leaving = Leaving(self.processes, self.deadlines, saves)
        while self.processes.active:
            self.processes.wait()
            self.last_row.handle(self.processes.telemetry.drain())
            for worker, code in self.processes.reap_exited():
                if worker.name == learner_name() and code != 0:
                    self.learner_failed = True
                    _add_learner_failure(worker, outcome)
            if self.signals.stop_count > max(signals_before, 1):
                return False
            finished = outcome.code == Exit.FINISHED and not self.signals.stop_count
            leaving.evaluate = finished and not self._evaluated()
            seconds = time.monotonic() - start
            for worker in list(self.processes.active.values()):
                if not leaving.goes_on(worker, seconds):
                    worker.kill()
        return True

    def _add_last_update(self, outcome: Outcome) -> None:
        """As in `exit_rules`; but what a learner reached that failed before it had saved does not count."""
        reported = self.shared.learner[POLICY].outcome
        if not self.learner_failed or reported == LearnerOutcome.STORAGE:
            add_last_update(outcome, reported, self.run_spec)

    def _log_missing_evaluation(self, outcome: Outcome) -> None:
        """Say so if the last policy of a finished run was not evaluated, and why."""
        if outcome.code != Exit.FINISHED or self._evaluated():
            return
        reason = f"the evaluator failed or took longer than {EVALUATION_S:g} s"
        if self.signals.stop_count:
            reason = "a signal arrived"
        self.recorder.writers.log(f"the last policy was not evaluated ({reason}); run `sfactory eval`")

    def _end_by_second_signal(self, outcome: Outcome) -> None:
        """Say so in the outcome; a finished run whose last update is not saved yet has been ended by the signal."""
        if learner_name() not in self.processes.active:  # it has saved, or has reported why not
            self._add_last_update(outcome)
            outcome.sentence += "; stopped by a second signal"
            return
        by_signal = self.signals.outcome()
        if outcome.code == Exit.FINISHED and by_signal is not None:
            outcome.name, outcome.code = by_signal.name, by_signal.code
        outcome.sentence += SECOND_SIGNAL

    def _evaluated(self) -> bool:
        """Whether the learner has exited and no evaluation of its last checkpoint is due."""
        checkpoint = self.shared.learner[POLICY].checkpoint
        due = self.run_spec.evaluation_due(self.recorder.board.evaluated, checkpoint)
        return learner_name() not in self.processes.active and not due


def _add_learner_failure(learner: WorkerProcess, outcome: Outcome) -> None:
    """Say that the learner did not exit by itself: the last update may not be saved."""
    if outcome.code not in ORDERLY:
        return
    if learner.exceeded:
        outcome.sentence += f"; the learner was killed before it exited: {learner.exceeded}"
    else:
        last_line = learner.output.last_line()
        outcome.sentence += f"; the learner failed before it exited{last_line and ': '}{last_line}"
    if outcome.code == Exit.FINISHED:
        outcome.name, outcome.code = Exit.WORKER_LOST.outcome, int(Exit.WORKER_LOST)


class Leaving:
    """How long each worker may take to exit after the stop order. Times are seconds since the order.

    Samplers close their environments one after the other, and the learner takes the optimizer steps of its update: both
    may take longer, as long as they make progress. A save has SAVE_S and the time that a slow disk
    takes for the last checkpoint.
    """

    def __init__(self, processes: Processes, deadlines: Deadlines, saves: bool = True) -> None:
        """saves: whether the learner is to save a checkpoint."""
        self.saves = saves
        self.deadlines, self.learner = deadlines, processes.shared.learner[POLICY]
        save_s = SAVE_S + size_of_newest(processes.run_spec.policy_dir(POLICY)) / SLOW_DISK
        self.learner_s = EXIT_S if _learner_is_silent(processes, deadlines) else save_s
        self.evaluate = False  # whether the evaluator is waited for
        self._seen: dict[str, tuple[tuple[int, ...], float]] = {}  # signs of progress, and when they changed

    def goes_on(self, worker: WorkerProcess, seconds: float) -> bool:
        """Whether a worker is within its limits; notes in the learner why it is not."""
        kind, quiet = parse_worker(worker.name).kind, self._quiet(worker.name, seconds)
        if kind == EVALUATOR:
            return self.evaluate and seconds <= EVALUATION_S
        if kind == LEARNER and self.saves:
            if quiet > self.learner_s:
                worker.exceeded = f"no optimizer step and no checkpoint for {self.learner_s:.0f} s"
            return not worker.exceeded
        if kind == SAMPLER and self.deadlines.phase(worker.name) == Phase.CLOSE:
            return seconds <= CLOSE_ALL_S and quiet <= CLOSE_S
        return seconds <= EXIT_S

    def _quiet(self, name: str, seconds: float) -> float:
        """Seconds without a sign of progress."""
        signs: tuple[int, ...] = ()
        if name == learner_name():
            signs = self.learner.updates, self.learner.optimizer_steps, self.learner.checkpoint
        elif name != evaluator_name():
            signs = self.deadlines.heartbeat(name)
        before, at = self._seen.get(name, (None, seconds))
        if signs != before:
            at = seconds
        self._seen[name] = signs, at
        return seconds - at


def _learner_is_silent(processes: Processes, deadlines: Deadlines) -> bool:
    """Whether the learner has made no progress for so long that it is not expected to save."""
    learner = processes.active.get(learner_name())
    if learner is None:
        return False
    progress_at = max(learner.heartbeat_at, deadlines.arrived_at)  # within an update it has no heartbeat
    return processes.clock - progress_at > SILENT_FRACTION * processes.run_spec.config.run.stall_timeout
