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
import threading
import time
from collections import Counter

from sfactory.device.machine import numa_nodes
from sfactory.errors import Exit
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.shm.atomics import check_memory_order
from sfactory.supervisor.affinity import placement
from sfactory.supervisor.child_main import SpawnMessage
from sfactory.supervisor.exit_rules import Abandon, End, Restart, WorkerExit, learner_outcome, on_exit
from sfactory.supervisor.run_worker import WorkerArgs, fds_of_handles
from sfactory.supervisor.shutdown import LastRow, stop_workers
from sfactory.supervisor.signals import Signals
from sfactory.supervisor.spawn import OrphanKiller, check_descriptors, kill_group, request_stack_dump, spawn
from sfactory.supervisor.telemetry import Telemetry
from sfactory.supervisor.worker_process import WorkerProcess
from sfactory.workers.names import LEARNER, POLICY, SAMPLER, evaluator_name, parse_worker
from sfactory.workers.shared import Phase, RunSpec, SharedState, heartbeat_phase

TICK_S = 0.1
LONGEST_TICK_S = 1.0  # the most that one tick adds to the supervisor's clock
STACK_DUMP_S = 0.2  # time for a worker to write its stacks
REAP_S = 5.0


class Supervisor:
    """Runs the workers of one run in processes until the learner, a signal or a fault ends the run."""

    def __init__(self, run_spec: RunSpec, recorder: RunRecorder, signals: Signals) -> None:
        self.run_spec, self.recorder, self.signals = run_spec, recorder, signals
        self.config = run_spec.config
        self.telemetry = Telemetry()
        self.processes: dict[str, WorkerProcess] = {}
        self.faults: Counter[str] = Counter()  # per worker, since the last update (evaluator: since its last result)
        # Seconds this process could run: deadlines pause while everything is stopped (SIGSTOP, a suspended laptop).
        self.clock, self._last_tick = 0.0, time.monotonic()
        self.updates, self.updated_at, self.evaluated = -1, 0.0, recorder.board.evaluated
        self.last_row = LastRow(recorder)

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Block until the run is over; every worker is reaped when it returns or raises."""
        check_memory_order()
        check_descriptors(len(self.run_spec.workers) + 1)
        self.run_spec.debug_dir.mkdir(parents=True, exist_ok=True)
        self.orphan_killer = OrphanKiller()  # before the arena and any worker
        try:
            self.shared = SharedState.create(self.run_spec)
            if line := placement(self.run_spec, numa_nodes()):
                self.recorder.writers.log(line)
            for name in self.run_spec.workers:  # the learner first: its imports take longest
                self._start(name)
            if self.config.eval.every:
                self._start(evaluator_name())
            outcome = self._loop()
            stop_workers(self, outcome)
            return outcome
        finally:
            for worker in list(self.processes.values()):
                kill_group(worker.pid)
            for worker in list(self.processes.values()):
                self.reap(worker)
            self.orphan_killer.close()
            if hasattr(self, "shared"):
                self.shared.close()  # a notebook may train many times in one process

    def _loop(self) -> Outcome:
        """Run until something ends the run. Checked in this order:

        a signal (`signals.py`); the learner's outcome: stop.env-steps, .frames, .seconds, updates that are not finite
        (`workers/learner.py`); the exit of a worker (`exit_rules.py`); a stall (`_check_deadlines`); the target return
        or too many environment faults (`RunRecorder.outcome_from_messages`). A failed last checkpoint changes the
        outcome to exit code 10 (`exit_rules.add_last_save`).
        """
        while True:
            self.wait()
            self.signals.forward(self.shared)
            self._record()
            outcome = (
                self.signals.outcome()
                or self._learner_outcome()
                or self._check_exits()
                or self._check_deadlines()
                or self.recorder.outcome_from_messages()
            )
            if outcome is not None:
                return outcome

    def wait(self) -> None:
        """Wait until a worker exits or for one tick; advance the clock."""
        poll = select.poll()
        for worker in self.processes.values():
            if worker.pidfd >= 0:
                poll.register(worker.pidfd, select.POLLIN)
        poll.poll(TICK_S * 1000)
        now = time.monotonic()
        self.clock += min(now - self._last_tick, LONGEST_TICK_S)
        self._last_tick = now

    def _record(self) -> None:
        """Record telemetry, and forget faults of workers that made progress since."""
        messages = self.telemetry.drain()
        # Read after the messages: the learner reports its outcome before its last row.
        if self._learner_outcome() is None:
            for message in messages:
                self.recorder.handle(message)
        else:
            self.last_row.handle(messages)
        self.shared.supervisor.training_return = self.recorder.training_return
        evaluator, updates = evaluator_name(), self.shared.learner[POLICY].updates
        if updates != self.updates:
            self.updates, self.updated_at = updates, self.clock
            self.faults = Counter({evaluator: self.faults[evaluator]})
        if self.recorder.board.evaluated != self.evaluated:
            self.evaluated = self.recorder.board.evaluated
            self.faults[evaluator] = 0

    def _learner_outcome(self) -> Outcome | None:
        return learner_outcome(self.shared.learner[POLICY].outcome, self.run_spec)

    # -- workers start and exit --------------------------------------------------------------------------------

    def _start(self, name: str, generation: int = 0) -> None:
        reaped = threading.Event()
        args = WorkerArgs(self.run_spec, self.telemetry.listen(reaped), generation, self.recorder.board.evaluated)
        shares_memory = name in self.run_spec.workers  # all but the evaluator
        fds = fds_of_handles(self.shared.handles) if shares_memory else ()
        process = spawn(SpawnMessage(name, os.getpid(), fds, self.output_file(name), args))
        assert process.pid is not None
        self.orphan_killer.watch(process.pid)
        worker = self.processes[name] = WorkerProcess(name, process, generation, reaped, heartbeat_at=self.clock)
        if shares_memory and parse_worker(name).kind != LEARNER:
            # The word still holds the last heartbeat of the previous generation: no deadline before the first new one.
            worker.heartbeat, worker.heartbeat_at = self._heartbeat(name), math.inf

    def reap(self, worker: WorkerProcess) -> None:
        """Kill a worker and its children and collect its exit status; the next generation starts only after this."""
        kill_group(worker.pid)
        self.orphan_killer.forget(worker.pid)
        self.processes.pop(worker.name, None)
        worker.join(REAP_S)

    def _check_exits(self) -> Outcome | None:
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
        worker_exit = WorkerExit(
            name, code, worker.generation, self.last_line(name), self._position(name), self.output_file(name)
        )
        action = on_exit(
            worker_exit, self.faults[name], self.updates, self.config.run.spare_restarts, self._learner_outcome()
        )
        match action:
            case End(outcome):
                return outcome
            case Restart(message, own_fault):
                self.faults[name] += own_fault
                self.recorder.handle(("fault", name, message))
                self._start(name, worker.generation + 1)
            case Abandon(message):
                self.recorder.handle(("fault", name, message))
        return None

    def output_file(self, name: str) -> str:
        """Where the worker's stdout and stderr go."""
        return str(self.run_spec.debug_dir / f"{name}.txt")

    def last_line(self, name: str) -> str:
        """Last line of the worker's output, or an empty string."""
        with contextlib.suppress(OSError), open(self.output_file(name), errors="replace") as file:
            lines = file.read().strip().splitlines()
            return lines[-1].strip() if lines else ""
        return ""

    def _heartbeat(self, name: str) -> int:
        return int(self.shared.heartbeat[self.run_spec.workers.index(name)])

    def _position(self, name: str) -> str:
        """The environment a sampler is stepping, for error messages; empty if it is not inside one."""
        kind, index = parse_worker(name)
        if kind != SAMPLER or heartbeat_phase(self._heartbeat(name)) != Phase.ENVIRONMENT:
            return ""
        arena, size = self.shared.arena, self.config.sampling.envs_per_group
        group, env = (int(x) for x in arena["position"][index])
        if env < 0:
            return f", in environments {group * size} to {group * size + size - 1}"
        seed, step = int(arena["episode_seed"][group, env]), int(arena["episode_step"][group, env])
        return f", in environment {group * size + env}, seed {seed}, step {step} of the episode"

    # -- deadlines ---------------------------------------------------------------------------------------------

    def _check_deadlines(self) -> Outcome | None:
        """Kill samplers whose environment hangs; end a run without updates as stalled."""
        now, limit = self.clock, self.config.env.step_timeout
        for name in self.run_spec.workers:
            worker, word = self.processes[name], self._heartbeat(name)
            if word != worker.heartbeat:
                worker.heartbeat, worker.heartbeat_at = word, now
            elif heartbeat_phase(word) == Phase.ENVIRONMENT and now - worker.heartbeat_at > limit:
                self.recorder.handle(("fault", name, f"{name}: environment step exceeded {limit:g} s"))
                request_stack_dump(worker.pid)
                time.sleep(STACK_DUMP_S)
                kill_group(worker.pid)
                worker.heartbeat_at = now
        stall_timeout = self.config.run.stall_timeout
        if now - self.updated_at > stall_timeout:
            self._dump_state()
            return Outcome.of(Exit.STALLED, f"no update for {stall_timeout:g} s; see {self.run_spec.debug_dir}")
        return None

    def _dump_state(self) -> None:
        """Write the stacks of all workers and the slot table into the debug folder."""
        for worker in self.processes.values():
            request_stack_dump(worker.pid)
        table = self.shared.slot_table
        lines = [
            f"group {g}: {table.last_request(g)} pending {table.pending(g)} slots (state/handover_count) "
            + " ".join(f"{table.state(g, s)}/{table.handover_count(g, s)}" for s in range(table.slots_per_group))
            for g in range(table.num_groups)
        ]
        (self.run_spec.debug_dir / "slot_table.txt").write_text("\n".join(lines) + "\n")
        time.sleep(STACK_DUMP_S)
