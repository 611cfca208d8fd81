"""The supervisor: start, watch, restart and stop the worker processes; record their telemetry.

consumes     telemetry, exits of workers, signals, the learner's words
produces     workers, the run folder, the stop order
waits for    an exit, or the next tick
unblocked by nothing else: it never waits longer than one tick

Moves no data and imports no torch. However it ends, all workers are killed and reaped first.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter

from sfactory.device.machine import numa_nodes
from sfactory.errors import Exit
from sfactory.monitor.messages import FAULT
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.shm import atomics
from sfactory.supervisor.affinity import placement
from sfactory.supervisor.deadlines import Deadlines
from sfactory.supervisor.exit_rules import End, WorkerExit, learner_outcome, on_exit
from sfactory.supervisor.first_update import FirstUpdate
from sfactory.supervisor.processes import Processes
from sfactory.supervisor.pulse import Pulse
from sfactory.supervisor.shutdown import LastRow, Shutdown
from sfactory.supervisor.signals import Signals
from sfactory.supervisor.spawn import OrphanKiller
from sfactory.supervisor.ticks import STACK_DUMP_S
from sfactory.supervisor.worker_process import WorkerProcess
from sfactory.workers.names import INFERENCE, POLICY, SAMPLER, evaluator_name, parse_worker
from sfactory.workers.shared import Phase, RunSpec, SharedState

SLOTS_PER_FAULT = 5
"""Slots that a worker helps to fill after which one of its faults is forgotten."""
HANGING_SHARE = 0.25
"""Of a worker's time: if it hangs for more than this before it is killed for a time limit, its slots make up for
nothing. Otherwise an environment that always hangs after a few episodes would be restarted without end."""


def run_workers(run_spec: RunSpec, recorder: RunRecorder, signals: Signals) -> Outcome:
    """Run the workers of a run, each in its own process, until the run is over.

    Every worker is reaped when this returns or raises.
    """
    atomics.check_memory_order()
    run_spec.debug_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as owned:
        orphan_killer = OrphanKiller()  # before the arena and any worker
        owned.callback(orphan_killer.close)
        shared = SharedState.create(run_spec)
        owned.callback(shared.close)  # a notebook may train many times in one process
        owned.callback(Pulse(shared.supervisor).close)
        processes = Processes(run_spec, shared, recorder, orphan_killer)
        owned.callback(processes.close)
        return Supervisor(processes, recorder, signals).run()


class Supervisor:
    """Runs the workers of one run in processes until the learner, a signal or a fault ends the run."""

    def __init__(self, processes: Processes, recorder: RunRecorder, signals: Signals) -> None:
        self.processes, self.recorder, self.signals = processes, recorder, signals
        self.run_spec, self.config, self.shared = processes.run_spec, processes.run_spec.config, processes.shared
        self.faults: Counter[str] = Counter()  # per worker (evaluator: since its last result)
        self.kills: Counter[str] = Counter()  # per worker, from outside, since it was last ready
        self.restarts: dict[str, float] = {}  # worker -> when it is due, on the clock of the processes
        self.evaluated = recorder.board.evaluated
        self.deadlines = Deadlines(self.run_spec, self.shared)
        self.first_update = FirstUpdate(self.run_spec, self.shared)
        self.last_row = LastRow(recorder)
        self.shutdown = Shutdown(processes, self.deadlines, recorder, signals, self.last_row)

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Start the workers, run them until something ends the run, and stop them."""
        self.recorder.trained_steps = lambda: self.shared.learner[POLICY].env_steps
        self.shared.episodes.write(self.recorder.board.episodes.numbers())
        if line := placement(self.run_spec, numa_nodes()):
            self.recorder.writers.log(line)
        for name in self.run_spec.workers:  # the learner first: its imports take longest
            self._start(name)
        if self.config.eval.every:
            self._start(evaluator_name())
        outcome = self._loop()
        try:
            self.processes.spares.close()
        finally:  # also if one of them cannot be killed
            self.shutdown.run(outcome)
        return outcome

    def _loop(self) -> Outcome:
        """Run until something ends the run. Checked in this order:

        the learner's outcome: a stop rule, updates that are not finite (`workers/learner.py`); a signal (`signals.py`);
        the exit of a worker (`exit_rules.py`); a stall (`deadlines.py`); too many environment faults
        (`RunRecorder.outcome_from_messages`); a callback. The last update and its checkpoint may change the outcome
        (`exit_rules.add_last_update`).
        """
        while True:
            self.processes.wait()
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

    def _record(self) -> None:
        """Record telemetry; forget the evaluator's faults after a result. Keep the output of workers small."""
        messages = self.processes.telemetry.drain()
        # Read after the messages: the learner reports its outcome before its last row.
        if self._learner_outcome() is None:
            for message in messages:
                self.recorder.handle(message)
        else:
            self.last_row.handle(messages)
        self.shared.episodes.write(self.recorder.board.episodes.numbers())
        self.recorder.callbacks.look(self.shared.learner[POLICY])
        if self.recorder.board.evaluated != self.evaluated:
            self.evaluated = self.recorder.board.evaluated
            self.faults[evaluator_name()] = 0
        if line := self.first_update.line(self.processes.clock):
            self.recorder.writers.log(line)
        for worker in self.processes.active.values():
            worker.output.trim()

    def _learner_outcome(self) -> Outcome | None:
        return learner_outcome(self.shared.learner[POLICY].outcome, self.run_spec)

    # -- workers start and exit --------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        """Start a worker: from now on it has time limits."""
        worker = self.processes.start(name)
        worker.slots_before = self._slots_filled(name)
        self.deadlines.begin(worker)
        self.processes.put_in_charge(worker)

    def _start_due(self) -> None:
        """Start the workers whose restart is due, and spares."""
        for name, due in list(self.restarts.items()):
            if self.processes.clock >= due:
                del self.restarts[name]
                self._start(name)
        self.processes.check_spares()

    def _check_exits(self) -> Outcome | None:
        for worker, code in self.processes.reap_exited():
            outcome = self._on_exit(worker, code)
            if outcome is not None:
                return outcome
        return None

    def _on_exit(self, worker: WorkerProcess, code: int) -> Outcome | None:
        """Apply the exit rules to a worker that was reaped."""
        name = worker.name
        self.deadlines.listen(worker, self.processes.clock)
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
            self.shared.learner[POLICY].updates,
            self.config.run.spare_restarts,
            self._learner_outcome(),
        )
        if isinstance(action, End):
            return action.outcome
        self.faults[name] += action.own_fault
        if worker_exit.killed_from_outside:
            self.kills[name] += 1
            if parse_worker(name).kind == INFERENCE:
                self.processes.spares.on_kill(name, self.processes.clock)
        self.recorder.handle((FAULT, name, action.message))
        self.restarts[name] = self.processes.clock + action.pause_s
        self._start_due()
        return None

    def _forget_faults(self, worker: WorkerProcess) -> None:
        """Forget faults and kills of a worker for the slots that were filled with its help."""
        slots = self._slots_filled(worker.name) - worker.slots_before
        if worker.ready:
            self.kills[worker.name] = 0
        if worker.hung_s <= HANGING_SHARE * (self.processes.clock - worker.began_at):
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
        workers = [worker for name, worker in self.processes.active.items() if name in self.run_spec.workers]
        now = self.processes.clock
        for worker in workers:
            if exceeded := self.deadlines.exceeded(worker, now):
                worker.exceeded, worker.hung_s = exceeded, now - worker.heartbeat_at
                worker.heartbeat_at = now
                self.recorder.handle((FAULT, worker.name, f"{worker.name}: {exceeded}"))
                worker.request_stack_dump()
                time.sleep(STACK_DUMP_S)
                worker.kill()
        if self.deadlines.stalled(workers, now):
            self._dump_state()
            sentence = f"no update for {self.config.run.stall_timeout:g} s, and no new rows"
            return Outcome.of(Exit.STALLED, f"{sentence}; see {self.run_spec.debug_dir}")
        return None

    def _dump_state(self) -> None:
        """Write the stacks of all workers and the slot table into the debug folder."""
        for worker in self.processes.active.values():
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
