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

from sfactory.batch import rescale_batch
from sfactory.config import Config
from sfactory.envs import bounded, make_specs
from sfactory.exits import UNGUARDED
from sfactory.memory import words
from sfactory.memory.words import check_memory_order
from sfactory.workers.asked import check_beginning, check_device, check_encoder
from sfactory.workers.birth import (
    ENVIRONMENT_FAULT,
    REFUSED,
    Birth,
    Undertaker,
    ask_for_stack,
    check_descriptors,
    give_birth,
    kill_group,
)
from sfactory.workers.record import Outcome, Record
from sfactory.workers.roles import Role, fds_of
from sfactory.workers.signals import REQUEUE, Signals, ask_scheduler
from sfactory.workers.telemetry import Telemetry
from sfactory.workers.wiring import (
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
    Plan,
    Shared,
    beat_phase,
)
from sfactory.workers.worker import Message
from sfactory.writers import check_wandb

TICK_S = 0.1
LONGEST_LOOK_S = 1.0  # what one turn of the loop may count for, however long it took
LEAVE_S = 2.0  # samplers and inference, after the stop word
STACK_S = 0.2  # for a stack to be written
GRACE_S = 30.0  # the learner: finish the update, save
EVALUATION_S = 60.0  # the evaluator, at the end of a finished run
EVALUATORS = 4  # in a row that may die without a result before there are no more of them


@dataclass
class Life:
    """One incarnation of a worker."""

    name: str
    process: BaseProcess
    pidfd: int
    incarnation: int
    over: threading.Event
    beat: int = -1
    beat_at: float = 0.0  # on the supervisor's own clock

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid


class Supervisor:
    """Runs the workers of one plan in processes until the learner, a signal or a loss ends the run."""

    def __init__(self, plan: Plan, record: Record) -> None:
        self.plan, self.record = plan, record
        self.config = plan.config
        self.telemetry = Telemetry()
        self.lives: dict[str, Life] = {}
        self.faults: dict[str, int] = dict.fromkeys(plan.workers, 0)  # own faults since the last update
        # Seconds this process was awake to see: deadlines stand still while everything does (SIGSTOP, a laptop asleep).
        self.awake, self._looked = 0.0, time.monotonic()
        self.updates, self.progress_at = -1, 0.0
        self.evaluators_lost, self.lost_at = 0, -1  # in a row, and what was evaluated last then
        self.last: list[Message] = []  # the learner's newest row at the end: it waits for the evaluation it shall tell

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Blocks until the run is over; every worker is dead when it returns or raises."""
        check_memory_order()
        check_descriptors(len(self.plan.workers) + 1)
        self.plan.debug_dir.mkdir(parents=True, exist_ok=True)
        self.undertaker = Undertaker()  # before the arena and any worker
        try:
            self.shared = Shared.create(self.plan)
            with Signals(self.config.run.requeue) as self.signals:
                for name in self.plan.workers:  # the learner first: its imports take longest
                    self._spawn(name, 0)
                if self.config.eval.every:
                    self._spawn(EVALUATOR, 0)
                outcome = self._loop()
                self._stop(outcome)
                return outcome
        finally:
            for life in list(self.lives.values()):
                kill_group(life.pid)
            for life in list(self.lives.values()):
                self._reap(life)
            self.undertaker.dismiss()
            if hasattr(self, "shared"):
                self.shared.close()  # a notebook trains again and again in one process

    def _loop(self) -> Outcome:
        while True:
            self._wait()
            self.signals.pass_on(self.shared)
            self._record()
            outcome = self.signals.ended() or self._learner_says() or self._deaths() or self._deadlines()
            outcome = outcome or self.record.reached()
            if outcome is not None:
                return outcome

    def _wait(self) -> None:
        poll = select.poll()
        for life in self.lives.values():
            if life.pidfd >= 0:
                poll.register(life.pidfd, select.POLLIN)
        poll.poll(TICK_S * 1000)
        now = time.monotonic()
        self.awake += min(now - self._looked, LONGEST_LOOK_S)
        self._looked = now

    def _record(self) -> None:
        messages = self.telemetry.take()
        if self._learner_says() is None:  # looked at after: it says so before its last row
            for message in messages:
                self.record.take(message)
        else:
            self._take_last(messages)
        self.record.tell(self.shared)
        updates = int(self.shared.progress[UPDATES])
        if updates != self.updates:
            self.updates, self.progress_at = updates, self.awake
            self.faults = dict.fromkeys(self.faults, 0)

    def _learner_says(self) -> Outcome | None:
        said = int(self.shared.progress[OUTCOME])
        if said == RUNNING:
            return None
        if said == NON_FINITE:
            count = self.config.learning.nonfinite_budget
            said_ = f"{count} updates in a row had a loss or gradient that was not finite; lower optim.lr"
            return Outcome("non-finite", 9, f"{said_}, or look into {self.plan.debug_dir / 'non-finite.json'}")
        return Outcome("finished", 0, "the stop rule was reached")

    # -- birth and death ---------------------------------------------------------------------------------------

    def _spawn(self, name: str, incarnation: int) -> None:
        over = threading.Event()
        role = Role(self.plan, self.telemetry.listen(over), incarnation, self.record.board.evaluated)
        fds = () if name == EVALUATOR else fds_of(self.shared.wires)  # it shares nothing
        last_words = str(self.plan.debug_dir / f"{name}.txt")
        process = give_birth(Birth(name, os.getpid(), fds, last_words, role))
        assert process.pid is not None
        self.undertaker.watch(process.pid)
        pidfd = os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
        life = self.lives[name] = Life(name, process, pidfd, incarnation, over, beat_at=self.awake)
        if name in self.plan.workers[1:]:  # its predecessor's last beat is not its own: no deadline before the first
            life.beat, life.beat_at = int(self.shared.heartbeat[self.plan.workers.index(name)]), math.inf

    def _reap(self, life: Life) -> None:
        """Bury one worker: only after this may its successor be born."""
        kill_group(life.pid)  # its grandchildren too
        self.undertaker.forget(life.pid)
        life.over.set()
        life.process.join(5.0)
        if life.pidfd >= 0:
            os.close(life.pidfd)
        self.lives.pop(life.name, None)
        if life.process.exitcode is None:
            raise RuntimeError(f"{life.name} (pid {life.pid}) could not be reaped within 5 s")

    def _deaths(self) -> Outcome | None:
        for life in list(self.lives.values()):
            if life.process.exitcode is None:
                continue
            code = life.process.exitcode
            self._reap(life)
            outcome = self._mourn(life, code)
            if outcome is not None:
                return outcome
        return None

    def _mourn(self, life: Life, code: int) -> Outcome | None:
        """Decide what a death means: the run's end, or a newborn."""
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        if life.name == EVALUATOR:
            self._mourn_evaluator(life, cause)
            return None
        where = self._where(life.name) if code != -signal.SIGKILL else ""
        words_ = self._last_words(life.name)
        if code == UNGUARDED:
            return Outcome("unguarded", code, f"{life.name} imported a script that trains without a guard")
        if life.name == "learner" and code == REFUSED:
            return Outcome("refused", code, words_.removeprefix(": "))
        if life.name == "learner":
            return self._learner_says() or Outcome("lost", 7, f"the learner died ({cause}){words_}")
        if code == ENVIRONMENT_FAULT and (life.incarnation == 0 or self.updates <= 0):
            return Outcome("environment fault", 6, f"{life.name} could not build its environments{words_}")
        if code != -signal.SIGKILL:  # a kill from outside is answered at once, as often as it comes
            self.faults[life.name] += 1
            if self.faults[life.name] > self.config.run.spare_restarts:
                code_ = 6 if code == ENVIRONMENT_FAULT else 7
                died = f"{life.name} died {self.faults[life.name]} times without an update"
                return Outcome("lost", code_, f"{died} ({cause}{where}){words_}")
        reason = words_ if code > 0 else ""  # a process that was killed had no time for words
        reason += where
        self.record.take(("fault", life.name, f"{life.name} died ({cause}{reason}); respawned"))
        self._spawn(life.name, life.incarnation + 1)
        return None

    def _mourn_evaluator(self, life: Life, cause: str) -> None:
        """Training never ends with it: it is born anew, until it has died too often without a result in between."""
        evaluated = self.record.board.evaluated
        self.evaluators_lost = self.evaluators_lost + 1 if evaluated == self.lost_at else 1
        self.lost_at = evaluated
        further = "respawned"
        if self.evaluators_lost < EVALUATORS:
            self._spawn(EVALUATOR, life.incarnation + 1)
        else:
            further = f"for the {EVALUATORS}th time without a result: no more evaluations, training goes on"
        where = self.plan.debug_dir / f"{EVALUATOR}.txt"
        self.record.take(("fault", EVALUATOR, f"{EVALUATOR} died ({cause}; see {where}); {further}"))

    def _last_words(self, name: str) -> str:
        with contextlib.suppress(OSError):
            lines = (self.plan.debug_dir / f"{name}.txt").read_text(errors="replace").strip().splitlines()
            if lines:
                return f": {lines[-1].strip()}"
        return ""

    def _where(self, name: str) -> str:
        """Which environment a sampler was in when it died, if it was in one."""
        row = self.plan.workers.index(name)
        if not name.startswith("sampler-") or beat_phase(int(self.shared.heartbeat[row])) != ENVIRONMENT:
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
        for row, name in enumerate(self.plan.workers):
            life, beat = self.lives[name], int(self.shared.heartbeat[row])
            if beat != life.beat:
                life.beat, life.beat_at = beat, now
            elif beat_phase(beat) == ENVIRONMENT and now - life.beat_at > self.config.env.step_timeout:
                said = f"{name}: environment step exceeded {self.config.env.step_timeout:g} s"
                self.record.take(("fault", name, said))
                ask_for_stack(life.pid)
                time.sleep(STACK_S)
                kill_group(life.pid)
                life.beat_at = now
        if now - self.progress_at > self.config.run.stall_timeout:
            self._dump()
            said = f"no update for {self.config.run.stall_timeout:g} s; see {self.plan.debug_dir}"
            return Outcome("stalled", 8, said)
        return None

    def _dump(self) -> None:
        """Stacks of all workers and the book, into the debug folder."""
        for life in self.lives.values():
            ask_for_stack(life.pid)
        book = self.shared.book
        lines = [
            f"group {g}: asked {book.asked(g)} outstanding {book.outstanding(g)} slots "
            + " ".join(f"{book.state(g, s)}/{book.handed(g, s)}" for s in range(book.slots_per_group))
            for g in range(book.num_groups)
        ]
        (self.plan.debug_dir / "book.txt").write_text("\n".join(lines) + "\n")
        time.sleep(STACK_S)

    # -- the end -----------------------------------------------------------------------------------------------

    def _stop(self, outcome: Outcome) -> None:
        """One stop word, part of every look, then a ring to all; nobody is born from here on."""
        words.store(self.shared.orders, STOP, FINISH if self.updates >= 0 else NOW)
        self.shared.ring_all()
        try:
            if not self._see_off(outcome):
                outcome.sentence += "; a second signal: no checkpoint was waited for"
                return
            if int(self.shared.progress[OUTCOME]) == STORAGE:
                outcome.name, outcome.code = "storage", 10
                outcome.sentence += "; the last checkpoint could not be written, see log.txt"
            self.record.close_book(self.shared.book.ledger())
            self.telemetry.settle()  # the last messages are in the queues already
            self._take_last(self.telemetry.take())
        finally:
            for row in self.last:
                self.record.take(row)

    def _see_off(self, outcome: Outcome) -> bool:
        """Wait until everybody has left, and kill who takes too long; False if a second signal came instead."""
        started = time.monotonic()
        signals_before = self.signals.stop
        learner = self.lives.get("learner")  # without a sign of life for as long as a stall: nothing is waited for
        stuck = learner is not None and self.awake - learner.beat_at > 0.9 * self.config.run.stall_timeout
        while self.lives:
            self._wait()
            self._take_last(self.telemetry.take())
            for life in list(self.lives.values()):
                if life.process.exitcode is not None:
                    if life.name == "learner" and life.process.exitcode != 0 and outcome.code in (0, 75, 130, 143):
                        outcome.sentence += f"; the learner died on the way out{self._last_words('learner')}"
                        outcome.code = outcome.code or 7
                    self._reap(life)
            if self.signals.stop > max(signals_before, 1):
                return False
            evaluate = outcome.code == 0 and self.signals.stop == signals_before and not self._evaluated()
            patience = {"learner": LEAVE_S if stuck else GRACE_S, EVALUATOR: EVALUATION_S if evaluate else 0.0}
            for life in list(self.lives.values()):
                if time.monotonic() - started > patience.get(life.name, LEAVE_S):
                    kill_group(life.pid)
        if outcome.code == 0 and not self._evaluated():
            why = f"the evaluator died, or took longer than {EVALUATION_S:g} s"
            self.record.writers.log(f"the last policy was not evaluated ({why}); `sfactory eval` plays it")
        return True

    def _take_last(self, messages: list[Message]) -> None:
        """Messages into the record, but for the newest row."""
        for message in messages:
            if message[0] == "learner":
                self.last.append(message)
            else:
                self.record.take(message)
        while len(self.last) > 1:
            self.record.take(self.last.pop(0))

    def _evaluated(self) -> bool:
        """The learner has left, and its last checkpoint has its evaluation or asks for none."""
        saved = int(self.shared.progress[CHECKPOINT])
        return "learner" not in self.lives and not self.plan.evaluation_due(self.record.board.evaluated, saved)


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
    with Record.open(config, Path(run_dir), resume, specs) as record:
        for line in table:
            record.writers.log(line)
        plan = Plan(scaled, specs[0], str(Path(run_dir).resolve()), record.launch, record.resume_from)
        if config.run.mode == "lockstep":
            from sfactory.workers.lockstep import run_lockstep  # brings torch

            outcome = run_lockstep(plan, record)
        else:
            outcome = Supervisor(plan, record).run()
        outcome.run_dir = str(run_dir)
        record.finish(outcome)
        if outcome.code == REQUEUE:  # last: a scheduler may answer with a kill
            record.writers.log(ask_scheduler())
        return outcome
