"""The supervisor: allocates, spawns, watches, buries, respawns, reads telemetry, writes the record, stops.

consumes    telemetry, deaths, signals, the learner's words
produces    workers, the run folder, the stop word
waits for   a death or a tick
unblocked by nobody: it never waits longer than a tick

It moves no data and imports no torch. It has one way out: kill and reap everybody, whatever was raised.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from sfactory.config import Config
from sfactory.envs import bounded, make_specs
from sfactory.errors import UNGUARDED, Exit
from sfactory.learning.batch_scaling import rescale_batch
from sfactory.monitor.messages import Message
from sfactory.monitor.writers import check_wandb
from sfactory.run.recorder import Outcome, RunRecorder
from sfactory.shm import atomics
from sfactory.shm.atomics import check_memory_order
from sfactory.supervisor.child_main import SpawnMessage
from sfactory.supervisor.preflight import check_beginning, check_device, check_encoder
from sfactory.supervisor.run_worker import WorkerArgs, fds_of_handles
from sfactory.supervisor.signals import REQUEUE, Signals, ask_scheduler
from sfactory.supervisor.spawn import (
    OrphanKiller,
    check_descriptors,
    kill_group,
    request_stack_dump,
    spawn,
)
from sfactory.supervisor.telemetry import Telemetry
from sfactory.workers.shared import (
    CHECKPOINT,
    ENVIRONMENT,
    EVALUATOR,
    FINISH,
    NON_FINITE,
    NOW,
    OUTCOME,
    RUNNING,
    STOP,
    STORAGE,
    UPDATES,
    RunSpec,
    SharedState,
    heartbeat_phase,
)

TICK_S = 0.1
LONGEST_LOOK_S = 1.0  # what one turn of the loop may count for, however long it took
LEAVE_S = 2.0  # samplers and inference, after the stop word
STACK_S = 0.2  # for a stack to be written
GRACE_S = 30.0  # the learner: finish the update, save
EVALUATION_S = 60.0  # the evaluator, at the end of a finished run
EVALUATORS = 4  # in a row that may die without a result before there are no more of them


@dataclass
class WorkerProcess:
    """One generation of a worker."""

    name: str
    process: BaseProcess
    pidfd: int
    generation: int
    over: threading.Event
    beat: int = -1
    beat_at: float = 0.0  # on the supervisor's own clock

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid


class Supervisor:
    """Runs the workers of one run_spec in processes until the learner, a signal or a loss ends the run."""

    def __init__(self, run_spec: RunSpec, recorder: RunRecorder) -> None:
        self.run_spec, self.recorder = run_spec, recorder
        self.config = run_spec.config
        self.telemetry = Telemetry()
        self.processes: dict[str, WorkerProcess] = {}
        self.faults: dict[str, int] = dict.fromkeys(run_spec.workers, 0)  # own faults since the last update
        # Seconds this process was awake to see: deadlines stand still while everything does (SIGSTOP, a laptop asleep).
        self.awake, self._looked = 0.0, time.monotonic()
        self.updates, self.progress_at = -1, 0.0
        self.evaluators_lost, self.lost_at = 0, -1  # in a row, and what was evaluated last then
        self.last: list[Message] = []  # the learner's newest row at the end: it waits for the evaluation it shall tell

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Blocks until the run is over; every worker is dead when it returns or raises."""
        check_memory_order()
        check_descriptors(len(self.run_spec.workers) + 1)
        self.run_spec.debug_dir.mkdir(parents=True, exist_ok=True)
        self.orphan_killer = OrphanKiller()  # before the arena and any worker
        try:
            self.shared = SharedState.create(self.run_spec)
            with Signals(self.config.run.requeue) as self.signals:
                for name in self.run_spec.workers:  # the learner first: its imports take longest
                    self._spawn(name, 0)
                if self.config.eval.every:
                    self._spawn(EVALUATOR, 0)
                outcome = self._loop()
                self._stop(outcome)
                return outcome
        finally:
            for worker in list(self.processes.values()):
                kill_group(worker.pid)
            for worker in list(self.processes.values()):
                self._reap(worker)
            self.orphan_killer.dismiss()
            if hasattr(self, "shared"):
                self.shared.close()  # a notebook trains again and again in one process

    def _loop(self) -> Outcome:
        while True:
            self._wait()
            self.signals.pass_on(self.shared)
            self._record()
            outcome = self.signals.ended() or self._learner_says() or self._deaths() or self._deadlines()
            outcome = outcome or self.recorder.reached()
            if outcome is not None:
                return outcome

    def _wait(self) -> None:
        poll = select.poll()
        for worker in self.processes.values():
            if worker.pidfd >= 0:
                poll.register(worker.pidfd, select.POLLIN)
        poll.poll(TICK_S * 1000)
        now = time.monotonic()
        self.awake += min(now - self._looked, LONGEST_LOOK_S)
        self._looked = now

    def _record(self) -> None:
        messages = self.telemetry.drain()
        if self._learner_says() is None:  # looked at after: it says so before its last row
            for message in messages:
                self.recorder.handle(message)
        else:
            self._take_last(messages)
        self.shared.set_training_return(self.recorder.training_return)
        updates = int(self.shared.progress[UPDATES])
        if updates != self.updates:
            self.updates, self.progress_at = updates, self.awake
            self.faults = dict.fromkeys(self.faults, 0)

    def _learner_says(self) -> Outcome | None:
        said = int(self.shared.progress[OUTCOME])
        if said == RUNNING:
            return None
        if said == NON_FINITE:
            count = self.config.loss.nonfinite_budget
            said_ = f"{count} updates in a row had a loss or gradient that was not finite; lower optim.lr"
            return Outcome("non-finite", 9, f"{said_}, or look into {self.run_spec.debug_dir / 'non-finite.json'}")
        return Outcome("finished", 0, "the stop rule was reached")

    # -- birth and death ---------------------------------------------------------------------------------------

    def _spawn(self, name: str, generation: int) -> None:
        over = threading.Event()
        args = WorkerArgs(self.run_spec, self.telemetry.listen(over), generation, self.recorder.board.evaluated)
        fds = () if name == EVALUATOR else fds_of_handles(self.shared.handles)  # it shares nothing
        last_words = str(self.run_spec.debug_dir / f"{name}.txt")
        process = spawn(SpawnMessage(name, os.getpid(), fds, last_words, args))
        assert process.pid is not None
        self.orphan_killer.watch(process.pid)
        pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
        worker = self.processes[name] = WorkerProcess(name, process, pidfd, generation, over, beat_at=self.awake)
        if name in self.run_spec.workers[1:]:  # its predecessor's last beat is not its own: no deadline before the first
            worker.beat, worker.beat_at = int(self.shared.heartbeat[self.run_spec.workers.index(name)]), math.inf

    def _reap(self, worker: WorkerProcess) -> None:
        """Bury one worker: only after this may its successor be born."""
        kill_group(worker.pid)  # its grandchildren too
        self.orphan_killer.forget(worker.pid)
        worker.over.set()
        worker.process.join(5.0)
        if worker.pidfd >= 0:
            os.close(worker.pidfd)
        self.processes.pop(worker.name, None)
        if worker.process.exitcode is None:
            raise RuntimeError(f"{worker.name} (pid {worker.pid}) could not be reaped within 5 s")

    def _deaths(self) -> Outcome | None:
        for worker in list(self.processes.values()):
            if worker.process.exitcode is None:
                continue
            code = worker.process.exitcode
            self._reap(worker)
            outcome = self._on_exit(worker, code)
            if outcome is not None:
                return outcome
        return None

    def _on_exit(self, worker: WorkerProcess, code: int) -> Outcome | None:
        """Decide what a death means: the run's end, or a newborn."""
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        if worker.name == EVALUATOR:
            self._on_evaluator_exit(worker, cause)
            return None
        where = self._where(worker.name) if code != -signal.SIGKILL else ""
        words_ = self._last_words(worker.name)
        if code == UNGUARDED:
            return Outcome("unguarded", code, f"{worker.name} imported a script that trains without a guard")
        if worker.name == "learner" and code == Exit.RESUME_REFUSED:
            return Outcome("refused", code, words_.removeprefix(": "))
        if worker.name == "learner":
            return self._learner_says() or Outcome("lost", 7, f"the learner died ({cause}){words_}")
        if code == Exit.ENVIRONMENT and (worker.generation == 0 or self.updates <= 0):
            return Outcome("environment fault", 6, f"{worker.name} could not build its environments{words_}")
        if code != -signal.SIGKILL:  # a kill from outside is answered at once, as often as it comes
            self.faults[worker.name] += 1
            if self.faults[worker.name] > self.config.run.spare_restarts:
                code_ = 6 if code == Exit.ENVIRONMENT else 7
                died = f"{worker.name} died {self.faults[worker.name]} times without an update"
                return Outcome("lost", code_, f"{died} ({cause}{where}){words_}")
        reason = words_ if code > 0 else ""  # a process that was killed had no time for words
        reason += where
        self.recorder.handle(("fault", worker.name, f"{worker.name} died ({cause}{reason}); respawned"))
        self._spawn(worker.name, worker.generation + 1)
        return None

    def _on_evaluator_exit(self, worker: WorkerProcess, cause: str) -> None:
        """Training never ends with it: it is born anew, until it has died too often without a result in between."""
        evaluated = self.recorder.board.evaluated
        self.evaluators_lost = self.evaluators_lost + 1 if evaluated == self.lost_at else 1
        self.lost_at = evaluated
        further = "respawned"
        if self.evaluators_lost < EVALUATORS:
            self._spawn(EVALUATOR, worker.generation + 1)
        else:
            further = f"for the {EVALUATORS}th time without a result: no more evaluations, training goes on"
        where = self.run_spec.debug_dir / f"{EVALUATOR}.txt"
        self.recorder.handle(("fault", EVALUATOR, f"{EVALUATOR} died ({cause}; see {where}); {further}"))

    def _last_words(self, name: str) -> str:
        with contextlib.suppress(OSError):
            lines = (self.run_spec.debug_dir / f"{name}.txt").read_text(errors="replace").strip().splitlines()
            if lines:
                return f": {lines[-1].strip()}"
        return ""

    def _where(self, name: str) -> str:
        """Which environment a sampler was in when it died, if it was in one."""
        row = self.run_spec.workers.index(name)
        if not name.startswith("sampler-") or heartbeat_phase(int(self.shared.heartbeat[row])) != ENVIRONMENT:
            return ""
        arena, size = self.shared.arena, self.config.sampling.envs_per_group
        group, env = (int(x) for x in arena["inside"][int(name.removeprefix("sampler-"))])
        if env < 0:
            return f", in environments {group * size} to {group * size + size - 1}"
        seed, step = int(arena["episode_seed"][group, env]), int(arena["episode_step"][group, env])
        return f", in environment {group * size + env}, seed {seed}, step {step} of the episode"

    def _deadlines(self) -> Outcome | None:
        """Environments that hang are killed; a run without updates is stalled."""
        now = self.awake
        for row, name in enumerate(self.run_spec.workers):
            worker, beat = self.processes[name], int(self.shared.heartbeat[row])
            if beat != worker.beat:
                worker.beat, worker.beat_at = beat, now
            elif heartbeat_phase(beat) == ENVIRONMENT and now - worker.beat_at > self.config.env.step_timeout:
                said = f"{name}: environment step exceeded {self.config.env.step_timeout:g} s"
                self.recorder.handle(("fault", name, said))
                request_stack_dump(worker.pid)
                time.sleep(STACK_S)
                kill_group(worker.pid)
                worker.beat_at = now
        if now - self.progress_at > self.config.run.stall_timeout:
            self._dump()
            said = f"no update for {self.config.run.stall_timeout:g} s; see {self.run_spec.debug_dir}"
            return Outcome("stalled", 8, said)
        return None

    def _dump(self) -> None:
        """Stacks of all workers and the book, into the debug folder."""
        for worker in self.processes.values():
            request_stack_dump(worker.pid)
        slot_table = self.shared.slot_table
        lines = [
            f"group {g}: asked {slot_table.last_request(g)} outstanding {slot_table.pending(g)} slots "
            + " ".join(f"{slot_table.state(g, s)}/{slot_table.handover_count(g, s)}" for s in range(slot_table.slots_per_group))
            for g in range(slot_table.num_groups)
        ]
        (self.run_spec.debug_dir / "slot_table.txt").write_text("\n".join(lines) + "\n")
        time.sleep(STACK_S)

    # -- the end -----------------------------------------------------------------------------------------------

    def _stop(self, outcome: Outcome) -> None:
        """One stop word, part of every look, then a ring to all; nobody is born from here on."""
        atomics.store(self.shared.orders, STOP, FINISH if self.updates >= 0 else NOW)
        self.shared.ring_all()
        try:
            if not self._see_off(outcome):
                outcome.sentence += "; a second signal: no checkpoint was waited for"
                return
            if int(self.shared.progress[OUTCOME]) == STORAGE:
                outcome.name, outcome.code = "storage", 10
                outcome.sentence += "; the last checkpoint could not be written, see log.txt"
            self.recorder.record_row_counts(self.shared.slot_table.row_counts())
            self.telemetry.settle()  # the last messages are in the queues already
            self._take_last(self.telemetry.drain())
        finally:
            for row in self.last:
                self.recorder.handle(row)

    def _see_off(self, outcome: Outcome) -> bool:
        """Wait until everybody has left, and kill who takes too long; False if a second signal came instead."""
        started = time.monotonic()
        signals_before = self.signals.stop
        learner = self.processes.get("learner")  # without a sign of worker for as long as a stall: nothing is waited for
        stuck = learner is not None and self.awake - learner.beat_at > 0.9 * self.config.run.stall_timeout
        while self.processes:
            self._wait()
            self._take_last(self.telemetry.drain())
            for worker in list(self.processes.values()):
                if worker.process.exitcode is not None:
                    if worker.name == "learner" and worker.process.exitcode != 0 and outcome.code in (0, 75, 130, 143):
                        outcome.sentence += f"; the learner died on the way out{self._last_words('learner')}"
                        outcome.code = outcome.code or 7
                    self._reap(worker)
            if self.signals.stop > max(signals_before, 1):
                return False
            evaluate = outcome.code == 0 and self.signals.stop == signals_before and not self._evaluated()
            patience = {"learner": LEAVE_S if stuck else GRACE_S, EVALUATOR: EVALUATION_S if evaluate else 0.0}
            for worker in list(self.processes.values()):
                if time.monotonic() - started > patience.get(worker.name, LEAVE_S):
                    kill_group(worker.pid)
        if outcome.code == 0 and not self._evaluated():
            why = f"the evaluator died, or took longer than {EVALUATION_S:g} s"
            self.recorder.writers.log(f"the last policy was not evaluated ({why}); `sfactory eval` plays it")
        return True

    def _take_last(self, messages: list[Message]) -> None:
        """Messages into the record, but for the newest row."""
        for message in messages:
            if message[0] == "learner":
                self.last.append(message)
            else:
                self.recorder.handle(message)
        while len(self.last) > 1:
            self.recorder.handle(self.last.pop(0))

    def _evaluated(self) -> bool:
        """The learner has left, and its last checkpoint has its evaluation or asks for none."""
        saved = int(self.shared.progress[CHECKPOINT])
        return "learner" not in self.processes and not self.run_spec.evaluation_due(self.recorder.board.evaluated, saved)


def train(config: Config, run_dir: Path, resume: bool = False) -> Outcome:
    """Train in `run_dir`: the whole of a run, and how it ended.

    Raises ValueError, EnvError or RunBusy for what the caller asked wrongly, before anything is written.
    """
    check_encoder(config.model.encoder)
    check_device("run.device", config.run.device)
    check_device("run.inference-device", config.run.inference_device)
    check_wandb(config)
    specs = make_specs(config.env.tasks, config.env.arguments)
    bounded(specs[0], config.model.squash)  # refuses what cannot be squashed
    if config.run.init_from and not resume:
        check_beginning(config)
    scaled, table = rescale_batch(config)
    with RunRecorder.open(config, Path(run_dir), resume, specs) as recorder:
        for line in table:
            recorder.writers.log(line)
        run_spec = RunSpec(scaled, specs[0], str(Path(run_dir).resolve()), recorder.launch, recorder.resume_from)
        if config.run.mode == "lockstep":
            from sfactory.supervisor.lockstep import run_lockstep  # brings torch

            outcome = run_lockstep(run_spec, recorder)
        else:
            outcome = Supervisor(run_spec, recorder).run()
        outcome.run_dir = str(run_dir)
        recorder.finish(outcome)
        if outcome.code == REQUEUE:  # last: a scheduler may answer with a kill
            recorder.writers.log(ask_scheduler())
        return outcome
