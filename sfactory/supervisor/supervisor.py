"""The supervisor: start, watch, restart and stop the worker processes; record their telemetry.

consumes     telemetry, exits of workers, signals, the learner's words
produces     workers, the run folder, the stop order
waits for    an exit, or the next tick
unblocked by nothing else: it never waits longer than one tick

Moves no data and imports no torch. However it ends, all workers are killed and reaped first.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections import Counter

from sfactory.device.machine import numa_nodes
from sfactory.errors import Exit
from sfactory.monitor.messages import FAULT
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.shm import atomics
from sfactory.supervisor.affinity import placement
from sfactory.supervisor.blas_threads import one_thread
from sfactory.supervisor.child_main import SpawnMessage
from sfactory.supervisor.deadlines import Deadlines
from sfactory.supervisor.exit_rules import End, WorkerExit, learner_outcome, on_exit
from sfactory.supervisor.first_update import FirstUpdate
from sfactory.supervisor.output_file import OutputFile
from sfactory.supervisor.pulse import Pulse
from sfactory.supervisor.run_worker import WorkerArgs, fds_of_handles
from sfactory.supervisor.shutdown import LastRow, stop_workers
from sfactory.supervisor.signals import Signals
from sfactory.supervisor.spares import Spares
from sfactory.supervisor.spawn import OrphanKiller, spawn
from sfactory.supervisor.telemetry import Telemetry
from sfactory.supervisor.ticks import STACK_DUMP_S, TICK_S, Ticks
from sfactory.supervisor.worker_process import WorkerProcess, left_behind
from sfactory.workers.names import EVALUATOR, INFERENCE, LEARNER, POLICY, SAMPLER, evaluator_name, parse_worker
from sfactory.workers.shared import Phase, RunSpec, SharedState

SLOTS_PER_FAULT = 5
"""Slots that a worker helps to fill after which one of its faults is forgotten."""
HANGING_SHARE = 0.25
"""Of a worker's time: if it hangs for more than this before it is killed for a time limit, its slots make up for
nothing. Otherwise an environment that always hangs after a few episodes would be restarted without end."""


class Supervisor:
    """Runs the workers of one run in processes until the learner, a signal or a fault ends the run."""

    def __init__(self, run_spec: RunSpec, recorder: RunRecorder, signals: Signals) -> None:
        self.run_spec, self.recorder, self.signals = run_spec, recorder, signals
        self.config = run_spec.config
        self.telemetry = Telemetry()
        self.processes: dict[str, WorkerProcess] = {}
        self.faults: Counter[str] = Counter()  # per worker (evaluator: since its last result)
        self.kills: Counter[str] = Counter()  # per worker, from outside, since it was last ready
        self.generations: Counter[str] = Counter()  # per worker: processes that were started, and its spares
        self.spares = Spares(self._spawn_next, self.reap)
        self.restarts: dict[str, float] = {}  # worker -> when it is due, on the clock
        self.clock, self._ticks = 0.0, Ticks()  # seconds that this process could run
        self.updates, self.evaluated = -1, recorder.board.evaluated
        self.learner_failed = False  # after the stop order
        self.last_row = LastRow(recorder)

    def share(self, shared: SharedState) -> None:
        """Use the shared memory of the run."""
        self.shared = shared
        self.recorder.trained_steps = lambda: shared.learner[POLICY].env_steps
        shared.episodes.write(self.recorder.board.episodes.numbers())
        self.deadlines, self.first_update = Deadlines(self.run_spec, shared), FirstUpdate(self.run_spec, shared)

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Block until the run is over; every worker is reaped when it returns or raises."""
        atomics.check_memory_order()
        self.run_spec.debug_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as owned:
            self.orphan_killer = OrphanKiller()  # before the arena and any worker
            owned.callback(self.orphan_killer.close)
            self.share(SharedState.create(self.run_spec))
            owned.callback(self.shared.close)  # a notebook may train many times in one process
            self.pulse = Pulse(self.shared.supervisor)
            owned.callback(self.pulse.close)
            owned.callback(self._reap_all)
            if line := placement(self.run_spec, numa_nodes()):
                self.recorder.writers.log(line)
            for name in self.run_spec.workers:  # the learner first: its imports take longest
                self._start(name)
            if self.config.eval.every:
                self._start(evaluator_name())
            outcome = self._loop()
            try:
                self.spares.close()
            finally:  # also if one of them cannot be killed
                stop_workers(self, outcome)
            return outcome

    def _reap_all(self) -> None:
        """Kill and reap whatever still runs: all of it, also if one process cannot be killed."""
        workers = list(self.processes.values())
        for worker in workers:
            worker.kill()
        with contextlib.ExitStack() as owned:
            owned.callback(self.spares.close)
            for worker in workers:
                owned.callback(self.reap, worker)

    def _loop(self) -> Outcome:
        """Run until something ends the run. Checked in this order:

        the learner's outcome: a stop rule, updates that are not finite (`workers/learner.py`); a signal (`signals.py`);
        the exit of a worker (`exit_rules.py`); a stall (`deadlines.py`); too many environment faults
        (`RunRecorder.outcome_from_messages`); a callback. The last update and its checkpoint may change the outcome
        (`exit_rules.add_last_update`).
        """
        while True:
            self.wait()
            self.signals.forward(self.shared)
            self._record()
            self._start_due()
            outcome = (
                self._learner_outcome()
                or self.signals.outcome()
                or self._check_exits()
                or self._check_deadlines()
                or self.recorder.outcome_from_messages()
                or self.recorder.callbacks.outcome()
            )
            if outcome is not None:
                return outcome

    def wait(self) -> None:
        """Wait until a worker exits or for one tick; advance the clock."""
        poll = select.poll()
        for worker in (*self.processes.values(), *self.spares.processes.values()):
            if worker.pidfd >= 0:
                poll.register(worker.pidfd, select.POLLIN)
        poll.poll(TICK_S * 1000)
        self.clock += self._ticks.passed()

    def _record(self) -> None:
        """Record telemetry; forget the evaluator's faults after a result. Keep the output of workers small."""
        messages = self.telemetry.drain()
        # Read after the messages: the learner reports its outcome before its last row.
        if self._learner_outcome() is None:
            for message in messages:
                self.recorder.handle(message)
        else:
            self.last_row.handle(messages)
        self.shared.episodes.write(self.recorder.board.episodes.numbers())
        self.updates = self.shared.learner[POLICY].updates
        self.recorder.callbacks.look(self.shared.learner[POLICY])
        if self.recorder.board.evaluated != self.evaluated:
            self.evaluated = self.recorder.board.evaluated
            self.faults[evaluator_name()] = 0
        if line := self.first_update.line(self.clock):
            self.recorder.writers.log(line)
        for worker in self.processes.values():
            worker.output.trim()

    def _learner_outcome(self) -> Outcome | None:
        return learner_outcome(self.shared.learner[POLICY].outcome, self.run_spec)

    # -- workers start and exit --------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        """Put the spare of a worker in charge of its work, or else a new process."""
        worker = self.spares.take(name)
        if worker is None:
            worker = self._spawn_next(name)
        else:
            worker.output = OutputFile(worker.output.path)  # what is there now was written by others
        self.processes[name] = worker
        worker.started_at = worker.heartbeat_at = self.clock
        worker.slots_before = self._slots_filled(name)
        if name in self.run_spec.workers:  # all but the evaluator
            # The word still holds the last heartbeat of the previous generation: no deadline before the first new one.
            worker.heartbeat = self.deadlines.heartbeat(name)
            if parse_worker(name).kind != LEARNER:
                worker.heartbeat_at = math.inf
            atomics.store(self.shared.in_charge, self.run_spec.workers.index(name), worker.generation)

    def _spawn_next(self, name: str) -> WorkerProcess:
        """Start a process with the next generation of a worker."""
        generation, reaped = self.generations[name], threading.Event()
        self.generations[name] += 1
        args = WorkerArgs(self.run_spec, self.telemetry.listen(reaped), generation, self.recorder.board.evaluated)
        fds = fds_of_handles(self.shared.handles) if name in self.run_spec.workers else ()
        output = OutputFile(self.run_spec.debug_dir / f"{name}.txt")
        mark, variables = self.orphan_killer.mark(name, generation), {}
        if parse_worker(name).kind in (SAMPLER, EVALUATOR):
            variables = one_thread(os.environ)
        process = spawn(SpawnMessage(name, fds, args), mark, str(output.path), variables)
        assert process.pid is not None
        self.orphan_killer.watch(process.pid)
        return WorkerProcess(name, process, generation, output, reaped)

    def _start_due(self) -> None:
        """Start the workers whose restart is due, and spares."""
        for name, due in list(self.restarts.items()):
            if self.clock >= due:
                del self.restarts[name]
                self._start(name)
        self.spares.check(self.processes, self.clock)

    def reap(self, worker: WorkerProcess) -> None:
        """Kill a worker and its children and collect its exit status; the next generation starts only after this."""
        if self.processes.get(worker.name) is worker:  # and not its spare
            del self.processes[worker.name]
        code = worker.join()
        # The reaper has ended everything, unless it was killed itself.
        mark = self.orphan_killer.mark(worker.name, worker.generation) if code == -signal.SIGKILL else ""
        if left := self.orphan_killer.forget(worker.pid, mark):
            self.recorder.writers.log(left_behind(worker.name, left))
        worker.output.trim()

    def _check_exits(self) -> Outcome | None:
        running = (*self.processes.values(), *self.spares.processes.values())
        self.orphan_killer.collect(worker.pid for worker in running)
        for worker in list(self.processes.values()):
            if worker.exit_code is not None:
                self.reap(worker)
                outcome = self._on_exit(worker, worker.exit_code)
                if outcome is not None:
                    return outcome
        return None

    def _on_exit(self, worker: WorkerProcess, code: int) -> Outcome | None:
        """Apply the exit rules to a worker that was reaped."""
        name = worker.name
        self.deadlines.listen(worker, self.clock)
        begun = worker.beats  # else position and phase are those of an earlier generation
        worker_exit = WorkerExit(
            name,
            code,
            worker.generation,
            worker.output.last_line(),
            self.deadlines.position(name) if begun else "",
            str(worker.output.path),
            worker.exceeded,
            building=begun and self.deadlines.phase(name) == Phase.BUILD,
        )
        self._forget_faults(worker)
        action = on_exit(
            worker_exit,
            self.faults[name],
            self.kills[name],
            self.updates,
            self.config.run.spare_restarts,
            self._learner_outcome(),
        )
        if isinstance(action, End):
            return action.outcome
        self.faults[name] += action.own_fault
        if worker_exit.killed_from_outside:
            self.kills[name] += 1
            if parse_worker(name).kind == INFERENCE:
                self.spares.on_kill(name, self.clock)
        self.recorder.handle((FAULT, name, action.message))
        self.restarts[name] = self.clock + action.pause_s
        self._start_due()
        return None

    def _forget_faults(self, worker: WorkerProcess) -> None:
        """Forget faults and kills of a worker for the slots that were filled with its help."""
        slots = self._slots_filled(worker.name) - worker.slots_before
        if worker.ready:
            self.kills[worker.name] = 0
        if worker.hung_s <= HANGING_SHARE * (self.clock - worker.began_at):
            self.faults[worker.name] = max(0, self.faults[worker.name] - slots // SLOTS_PER_FAULT)

    def _slots_filled(self, name: str) -> int:
        """Slots handed over so far by the groups that a sampler steps or an inference worker serves."""
        kind, number = parse_worker(name)
        groups = {SAMPLER: self.run_spec.groups_of, INFERENCE: self.run_spec.groups_served}.get(kind, lambda _: ())
        table = self.shared.slot_table
        return sum(table.handover_count(g, slot) for g in groups(number) for slot in range(table.slots_per_group))

    # -- deadlines ---------------------------------------------------------------------------------------------

    def _check_deadlines(self) -> Outcome | None:
        """Kill workers that exceed a time limit; end a run in which nothing arrives as stalled."""
        workers = [worker for name, worker in self.processes.items() if name in self.run_spec.workers]
        for worker in workers:
            if exceeded := self.deadlines.exceeded(worker, self.clock):
                worker.exceeded, worker.hung_s = exceeded, self.clock - worker.heartbeat_at
                worker.heartbeat_at = self.clock
                self.recorder.handle((FAULT, worker.name, f"{worker.name}: {exceeded}"))
                worker.request_stack_dump()
                time.sleep(STACK_DUMP_S)
                worker.kill()
        if self.deadlines.stalled(workers, self.clock):
            self._dump_state()
            sentence = f"no update for {self.config.run.stall_timeout:g} s, and no new rows"
            return Outcome.of(Exit.STALLED, f"{sentence}; see {self.run_spec.debug_dir}")
        return None

    def _dump_state(self) -> None:
        """Write the stacks of all workers and the slot table into the debug folder."""
        for worker in self.processes.values():
            worker.request_stack_dump()
        table = self.shared.slot_table
        lines = [
            f"group {g}: {table.last_request(g)} pending {table.pending(g)} slots (state/handover_count) "
            + " ".join(f"{table.state(g, s)}/{table.handover_count(g, s)}" for s in range(table.slots_per_group))
            for g in range(table.num_groups)
        ]
        with contextlib.suppress(OSError):  # the folder may have been removed
            (self.run_spec.debug_dir / "slot_table.txt").write_text("\n".join(lines) + "\n")
        time.sleep(STACK_DUMP_S)
