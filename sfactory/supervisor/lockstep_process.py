"""The parent of a lockstep run: starts the process that trains, records its telemetry, and ends it.

consumes     messages of the child, its exit, its heartbeats in shared memory, signals
produces     the child, the run folder, the answers that the child waits for
waits for    a message, an exit, or the next tick

All environments are in the child: none of them can hold up, end or change this process. Imports no torch.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import select
import signal
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sfactory.errors import UNGUARDED, EnvError, Exit
from sfactory.monitor.messages import Message
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.supervisor.child_main import SpawnMessage
from sfactory.supervisor.exit_rules import WorkerExit
from sfactory.supervisor.lockstep_clock import LockstepClock
from sfactory.supervisor.lockstep_link import End, Inside, Orders
from sfactory.supervisor.lockstep_task import LockstepTask
from sfactory.supervisor.output_file import OutputFile
from sfactory.supervisor.run_worker import fds_of_handles
from sfactory.supervisor.shutdown import CLOSE_ALL_S, CLOSE_S
from sfactory.supervisor.signals import SECOND_SIGNAL, Signals
from sfactory.supervisor.spawn import OrphanKiller, spawn
from sfactory.supervisor.ticks import STACK_DUMP_S, TICK_S, Ticks
from sfactory.supervisor.worker_process import WorkerProcess, left_behind
from sfactory.workers.names import LOCKSTEP, POLICY
from sfactory.workers.shared import RunSpec, SharedState


def run_lockstep(run_spec: RunSpec, recorder: RunRecorder, signals: Signals) -> Outcome:
    """A whole run in a child process; it and all that it started have exited when this returns or raises.

    Raises what ended the child if that was an exception. An environment that fails in training gives an outcome.
    """
    run_spec.debug_dir.mkdir(parents=True, exist_ok=True)
    if run_spec.resume_from:  # an environment may change the child's working directory
        run_spec = replace(run_spec, resume_from=str(Path(run_spec.resume_from).resolve()))
    with contextlib.ExitStack() as owned:
        orphan_killer = OrphanKiller()
        owned.callback(orphan_killer.close)
        shared = SharedState.create(run_spec)
        owned.callback(shared.close)
        connection, worker = _start(run_spec, shared, orphan_killer)
        owned.callback(connection.close)
        owned.callback(_reap, worker, orphan_killer, recorder)
        return LockstepProcess(run_spec, shared, recorder, signals, connection, worker).run()


def _start(run_spec: RunSpec, shared: SharedState, orphan_killer: OrphanKiller) -> tuple[Connection, WorkerProcess]:
    """Start the child."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    output = OutputFile(run_spec.debug_dir / f"{LOCKSTEP}.txt")
    message = SpawnMessage(LOCKSTEP, fds_of_handles(shared.handles), LockstepTask(run_spec, theirs))
    process = spawn(message, orphan_killer.mark(LOCKSTEP, 0), str(output.path))
    theirs.close()
    assert process.pid is not None
    orphan_killer.watch(process.pid)
    return ours, WorkerProcess(LOCKSTEP, process, 0, output)


def _reap(worker: WorkerProcess, orphan_killer: OrphanKiller, recorder: RunRecorder) -> None:
    """Kill the child, if it runs, and what it started."""
    code = worker.join()
    mark = orphan_killer.mark(LOCKSTEP, 0) if code == -signal.SIGKILL else ""
    if left := orphan_killer.forget(worker.pid, mark):
        recorder.writers.log(left_behind(LOCKSTEP, left))
    worker.output.trim()


class LockstepProcess:
    """Answers the child of one run until the run is over."""

    def __init__(
        self,
        run_spec: RunSpec,
        shared: SharedState,
        recorder: RunRecorder,
        signals: Signals,
        connection: Connection,
        worker: WorkerProcess,
    ) -> None:
        self.run_spec, self.recorder, self.signals = run_spec, recorder, signals
        self.shared, self.connection, self.worker = shared, connection, worker
        recorder.trained_steps = lambda: shared.learner[POLICY].env_steps
        self.limits = LockstepClock(run_spec, shared)
        self.now, self._ticks = 0.0, Ticks()  # seconds that this process could run
        self.connected = True
        self.ended: Outcome | None = None  # what the child reported
        self._noticed = 0  # signals that the loop saw when it saw the first one: together they count as one

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Until the run is over. Checked in this order: messages, a second signal, the child's exit, time limits."""
        while self.ended is None:
            self._wait()
            code = self.worker.exit_code  # before the messages are read: what was sent before the exit is found
            self._receive()
            if self.ended is None and (outcome := self._second_signal() or self._exited(code) or self._too_slow()):
                return outcome
        self._wait_for_exit()
        return self.ended

    def _wait(self) -> None:
        """Wait for a message, for the child's exit or for one tick; advance the clock."""
        poll = select.poll()
        if self.connected:
            poll.register(self.connection, select.POLLIN)
        if self.worker.pidfd >= 0:
            poll.register(self.worker.pidfd, select.POLLIN)
        poll.poll(TICK_S * 1000)
        self.now += self._ticks.passed()
        self.worker.output.trim()

    def _wait_for_exit(self) -> None:
        """Wait for the child to close its environments, as long as it gets on."""
        signals = self.signals.stop_count
        begun = changed = self.now
        seen = self.limits.heartbeats()
        while self.worker.exit_code is None and self.signals.stop_count <= max(signals, 1):
            self.connected = False  # the run is recorded
            self._wait()
            if (heartbeats := self.limits.heartbeats()) != seen:
                seen, changed = heartbeats, self.now
            if self.now - changed > CLOSE_S or self.now - begun > CLOSE_ALL_S:
                return

    # -- what ends the run besides the child -----------------------------------------------------------------------

    def _second_signal(self) -> Outcome | None:
        self._noticed = self._noticed or self.signals.stop_count  # `timeout` and shells send two at once
        outcome = self.signals.outcome() if self.signals.stop_count > max(self._noticed, 1) else None
        if outcome is not None:
            outcome.sentence += SECOND_SIGNAL
        return outcome

    def _exited(self, code: int | None) -> Outcome | None:
        """The outcome if the child has exited without a last message."""
        if code is None:
            return None
        where, exceeded = self.limits.where(), self.worker.exceeded
        found = WorkerExit(LOCKSTEP, code, last_line=self.worker.output.last_line(), exceeded=exceeded)
        if code == UNGUARDED:
            return Outcome("unguarded", UNGUARDED, f"{LOCKSTEP} imported a script that trains without a guard")
        if code == -signal.SIGKILL:
            return self._failed(Exit.WORKER_LOST, f"{LOCKSTEP} was {found.cause}")
        exit_code = Exit.ENVIRONMENT if where else Exit.WORKER_LOST
        detail = found.detail if code > 0 else ""  # a killed process could not write a message of its own
        return self._failed(exit_code, f"{LOCKSTEP} exited ({found.cause}{where}){detail}")

    def _too_slow(self) -> Outcome | None:
        """The outcome if environments have exceeded a time limit, or nothing arrives any more."""
        if exceeded := self.limits.exceeded(self.now):
            code, sentence = Exit.ENVIRONMENT, exceeded
        elif self.limits.stalled(self.now):
            code = Exit.STALLED
            sentence = f"no update for {self.run_spec.config.run.stall_timeout:g} s, and no new rows"
        else:
            return None
        self.worker.request_stack_dump()
        time.sleep(STACK_DUMP_S)
        return self._failed(code, f"{sentence}; see {self.worker.output.path}")

    def _failed(self, code: Exit, sentence: str) -> Outcome:
        """The outcome of a failure: that of a signal, if there was one before."""
        outcome = self.signals.outcome()
        if outcome is None:
            return Outcome.of(code, sentence)
        outcome.sentence += f"; no checkpoint was written, because {sentence}"
        return outcome

    # -- messages of the child (`lockstep_link.Link`) --------------------------------------------------------------

    def _receive(self) -> None:
        """Act on all messages that have arrived."""
        while self.connected and self.ended is None and self.connection.poll():
            try:
                kind, contents = self.connection.recv()
            except (EOFError, OSError):  # also plain OSError: the child was killed within a message
                self.connected = False
                return
            getattr(self, f"_on_{kind}")(*contents)

    def _answer(self, contents: Any) -> None:
        with contextlib.suppress(OSError):  # it has exited in the meantime
            self.connection.send(contents)

    def _orders(self, outcome: Outcome | None) -> Orders:
        self.shared.episodes.write(self.recorder.board.episodes.numbers())  # for checkpoints and stop rules
        return Orders(self.recorder.board.evaluated, self.signals.save_count, outcome)

    def _on_begin(self) -> None:
        self.limits.begin()
        self._answer(self._orders(None))

    def _on_record(self, messages: list[Message], updated: bool) -> None:
        for message in messages:
            self.recorder.handle(message)
        callbacks = self.recorder.callbacks
        callbacks.look(self.shared.learner[POLICY])
        stopped = self.signals.outcome() or callbacks.outcome() if updated else None
        self.signals.propose(self.shared)
        self._answer(self._orders(stopped or self.recorder.outcome_from_messages()))

    def _on_log(self, line: str) -> None:
        self.recorder.writers.log(line)

    def _on_board(self) -> None:
        self._answer(self.recorder.board.state())

    def _on_set_board(self, state: dict[str, Any]) -> None:
        self.recorder.board.set_state(state)

    def _on_inside(self, inside: Inside | None) -> None:
        self.limits.inside(inside, self.now)

    def _on_refuse(self, sentence: str) -> None:
        self.ended = Outcome.of(Exit.RESUME_REFUSED, sentence)

    def _on_end(self, end: End) -> None:
        self.recorder.record_row_counts(end.row_counts, end.rows_by_task)
        for message in end.messages:
            self.recorder.handle(message)
        self.ended = end.outcome

    def _on_fail(self, error: Exception) -> None:
        """End the run with an outcome if an environment failed while it trained; raise everything else."""
        if not (self.limits.begun and isinstance(error, EnvError) and error.fault):
            raise error
        self.recorder.record_row_counts(self.shared.slot_table.row_counts(), self.shared.rows_by_task())
        self.ended = self._failed(error.exit_code, str(error))
