"""The worker processes of a run: start them, wait for an exit, end and reap them.

Decides nothing: which worker is started and when, and what its exit means, is up to the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections import Counter
from collections.abc import Iterator

from sfactory.run.recorder import RunRecorder
from sfactory.shm import atomics
from sfactory.supervisor.blas_threads import one_thread
from sfactory.supervisor.child_main import SpawnMessage
from sfactory.supervisor.output_file import OutputFile
from sfactory.supervisor.run_worker import WorkerArgs, fds_of_handles
from sfactory.supervisor.spares import Spares
from sfactory.supervisor.spawn import OrphanKiller, spawn
from sfactory.supervisor.telemetry import Telemetry
from sfactory.supervisor.ticks import TICK_S, Ticks
from sfactory.supervisor.worker_process import WorkerProcess, left_behind
from sfactory.workers.names import EVALUATOR, SAMPLER, parse_worker
from sfactory.workers.shared import RunSpec, SharedState


class Processes:
    """At most one active process per worker, and its spare."""

    def __init__(
        self, run_spec: RunSpec, shared: SharedState, recorder: RunRecorder, orphan_killer: OrphanKiller
    ) -> None:
        """recorder: its log, and the newest evaluation. orphan_killer: created before the shared memory."""
        self.run_spec, self.shared, self.recorder, self.orphan_killer = run_spec, shared, recorder, orphan_killer
        self.telemetry = Telemetry()
        self.active: dict[str, WorkerProcess] = {}
        self.spares = Spares(self._spawn_next, self.reap)
        self.generations: Counter[str] = Counter()  # per worker: processes that were started, and its spares
        self.clock, self._ticks = 0.0, Ticks()  # seconds that this process could run

    def start(self, name: str) -> WorkerProcess:
        """Take the spare of a worker, or else a new process; it works when it is put in charge."""
        worker = self.spares.take(name)
        if worker is None:
            worker = self._spawn_next(name)
        else:
            worker.output = OutputFile(worker.output.path)  # what is there now was written by others
        worker.started_at = worker.heartbeat_at = self.clock
        self.active[name] = worker
        return worker

    def put_in_charge(self, worker: WorkerProcess) -> None:
        """Let a process do the work of its worker. The evaluator shares no memory and is always in charge."""
        if worker.name in self.run_spec.workers:
            atomics.store(self.shared.in_charge, self.run_spec.workers.index(worker.name), worker.generation)

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

    def wait(self) -> None:
        """Wait until a process exits or for one tick; advance the clock."""
        poll = select.poll()
        for worker in self._running():
            if worker.pidfd >= 0:
                poll.register(worker.pidfd, select.POLLIN)
        poll.poll(TICK_S * 1000)
        self.clock += self._ticks.passed()

    def check_spares(self) -> None:
        """Start and end spares."""
        self.spares.check(self.active, self.clock)

    def reap_exited(self) -> Iterator[tuple[WorkerProcess, int]]:
        """Reap the workers that have exited, one after the other, and yield each with its exit code."""
        self.orphan_killer.collect(worker.pid for worker in self._running())
        for worker in list(self.active.values()):
            if (code := worker.exit_code) is not None:
                self.reap(worker)
                yield worker, code

    def reap(self, worker: WorkerProcess) -> None:
        """Kill a worker and its children and collect its exit status; the next generation starts only after this."""
        if self.active.get(worker.name) is worker:  # and not its spare
            del self.active[worker.name]
        code = worker.join()
        # The reaper has ended everything, unless it was killed itself.
        mark = self.orphan_killer.mark(worker.name, worker.generation) if code == -signal.SIGKILL else ""
        if left := self.orphan_killer.forget(worker.pid, mark):
            self.recorder.writers.log(left_behind(worker.name, left))
        worker.output.trim()

    def close(self) -> None:
        """Kill and reap whatever still runs: all of it, also if one process cannot be killed."""
        workers = list(self.active.values())
        for worker in workers:
            worker.kill()
        with contextlib.ExitStack() as owned:
            owned.callback(self.spares.close)
            for worker in workers:
                owned.callback(self.reap, worker)

    def _running(self) -> tuple[WorkerProcess, ...]:
        return *self.active.values(), *self.spares.processes.values()
