"""Decide what follows from the exit of a worker and from the outcome of the learner. Pure functions.

| worker | exit | decision |
|---|---|---|
| evaluator | any | restart; from EVALUATOR_EXITS exits in a row without a result on after a pause |
| any other | UNGUARDED | end: the script trains without a guard |
| learner | RESUME_REFUSED | end: resume refused |
| learner | USAGE | end: usage; a setting of the network does not work |
| learner | WORKER_LOST | end: worker lost; another learner of the job is gone |
| learner | STALLED | end: stalled; another learner of the job shows no sign of life |
| learner | any other, after it reported an outcome | end with that outcome |
| learner | any other | end: worker lost |
| sampler | ENVIRONMENT or too slow to build, first generation or no update yet | end: environment fault |
| sampler, inference | SIGKILL from outside | restart, not counted; a sampler after PATIENT_KILLS in a row: a pause |
| sampler, inference | SIGKILL from outside, MOST_KILLS in a row | end: worker lost |
| sampler, inference | any other, or too slow, within the budget | restart after a pause, counted as its own fault |
| sampler, inference | any other, beyond the budget | end: worker lost |
| sampler | ENVIRONMENT or too slow, beyond the budget | end: environment fault |

The pause is 0 after the first of several faults, then 0.5 s, and twice as long after each further one, at most
LONGEST_PAUSE_S: a port or a license of the previous generation may become free only after a while. Kills are in a row
if the worker was never ready between them: where memory runs out while environments are built, the operating system
kills a sampler each time. The evaluator's pauses are longer: training does not need it, and what failed for an hour may
work in the next one.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from sfactory.errors import UNGUARDED, Exit
from sfactory.run.outcome import Outcome
from sfactory.supervisor.signals import PROPOSALS, SENTENCES
from sfactory.workers.names import EVALUATOR, LEARNER, SAMPLER, parse_worker
from sfactory.workers.shared import LearnerOutcome, RunSpec

EVALUATOR_EXITS = 4
"""Exits of the evaluator in a row, without a result between them, after which there is a pause before a restart."""
EVALUATOR_PAUSE_S, EVALUATOR_LONGEST_PAUSE_S = 60.0, 1800.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
PATIENT_KILLS, MOST_KILLS = 20, 100
"""Kills from outside before a worker was ready, in a row: so many without a pause, and so many that end the run."""


EXITS = {outcome: code for code, outcome in PROPOSALS.items()}
"""Outcomes on which several learners agreed because of a signal to one of them."""


@dataclass(frozen=True)
class WorkerExit:
    """How a worker process ended."""

    name: str
    code: int
    """Exit code; the negative signal number if a signal killed the process."""
    generation: int = 0
    last_line: str = ""
    """Last line of the worker's output."""
    position: str = ""
    """Environment, seed and step, if a sampler exited inside an environment."""
    output_file: str = ""
    exceeded: str = ""
    """The time limit for which the supervisor killed it, in words; empty if it did not."""
    building: bool = False
    """Whether it was building environments."""

    @property
    def failed_to_build(self) -> bool:
        return self.code == Exit.ENVIRONMENT or (self.building and bool(self.exceeded))

    @property
    def killed_from_outside(self) -> bool:
        return self.code == -signal.SIGKILL and not self.exceeded

    @property
    def cause(self) -> str:
        if self.exceeded:
            return f"killed: {self.exceeded}"
        return f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"

    @property
    def detail(self) -> str:
        return f": {self.last_line}" if self.last_line and not self.exceeded else ""


@dataclass(frozen=True)
class Restart:
    """Start the next generation of the worker."""

    message: str
    own_fault: bool
    """Whether the exit counts against the worker's budget."""
    pause_s: float = 0.0
    """Time before it starts."""


@dataclass(frozen=True)
class End:
    """End the run."""

    outcome: Outcome


def on_exit(
    worker: WorkerExit, faults: int, kills: int, updates: int, spare_restarts: int, finished: Outcome | None
) -> Restart | End:
    """Map a worker's exit to a restart or to the end of the run, by the table above.

    faults: earlier faults of this worker that its progress has not made up for (evaluator: since its last result).
    kills: earlier kills from outside since it was last ready to work. updates: of the run.
    spare_restarts: budget of faults. finished: the learner's outcome, None while it trains.
    """
    kind = parse_worker(worker.name).kind
    if kind == EVALUATOR:
        return _on_evaluator_exit(worker, faults)
    if worker.code == UNGUARDED:
        sentence = f"{worker.name} imported a script that trains without a guard"
        return End(Outcome("unguarded", UNGUARDED, sentence))
    if kind == LEARNER:
        return End(_on_learner_exit(worker, finished))
    if worker.failed_to_build and (worker.generation == 0 or updates <= 0):
        detail = worker.detail or f": {worker.cause}"
        return End(Outcome.of(Exit.ENVIRONMENT, f"{worker.name} could not build its environments{detail}"))
    if worker.killed_from_outside:
        return _on_kill(worker, kills)
    where = "" if worker.exceeded else worker.position  # else the cause says where
    if faults + 1 > spare_restarts:
        environment = kind == SAMPLER and (worker.failed_to_build or worker.exceeded)
        code = Exit.ENVIRONMENT if environment else Exit.WORKER_LOST
        times = f"{worker.name} exited {faults + 1} times with little or no progress in between"
        return End(Outcome.of(code, f"{times} ({worker.cause}{where}){worker.detail}"))
    detail = worker.detail if worker.code > 0 else ""  # a killed process could not write a message of its own
    pause_s = _pause(faults, FIRST_PAUSE_S, LONGEST_PAUSE_S)
    message = f"{worker.name} exited ({worker.cause}{detail}{where}); restarted{_in(pause_s)}"
    return Restart(message, own_fault=True, pause_s=pause_s)


def _on_kill(worker: WorkerExit, kills: int) -> Restart | End:
    if kills + 1 >= MOST_KILLS:
        times = f"{worker.name} was killed {kills + 1} times in a row before it was ready"
        return End(Outcome.of(Exit.WORKER_LOST, f"{times} ({worker.cause}); is there enough memory?"))
    sampler = parse_worker(worker.name).kind == SAMPLER  # the start of inference takes a second of processor time
    pause_s = _pause(kills + 1 - PATIENT_KILLS, FIRST_PAUSE_S, LONGEST_PAUSE_S) if sampler else 0.0
    return Restart(f"{worker.name} exited ({worker.cause}); restarted{_in(pause_s)}", own_fault=False, pause_s=pause_s)


def _on_evaluator_exit(worker: WorkerExit, faults: int) -> Restart:
    pause_s = _pause(faults + 2 - EVALUATOR_EXITS, EVALUATOR_PAUSE_S, EVALUATOR_LONGEST_PAUSE_S)
    times = f"; {faults + 1} times in a row without a result, training continues" if pause_s else ""
    message = f"{worker.name} exited ({worker.cause}; see {worker.output_file}){times}; restarted{_in(pause_s)}"
    return Restart(message, own_fault=True, pause_s=pause_s)


def _pause(number: int, first_s: float, longest_s: float) -> float:
    """Seconds before a restart: none up to number 0, `first_s` for 1, and twice as long for each further one."""
    return min(first_s * 2.0 ** min(number - 1, 30), longest_s) if number > 0 else 0.0


def _in(pause_s: float) -> str:
    return f" in {pause_s:g} s" if pause_s else ""


def _on_learner_exit(worker: WorkerExit, finished: Outcome | None) -> Outcome:
    if worker.code in (Exit.RESUME_REFUSED, Exit.USAGE, Exit.WORKER_LOST, Exit.STALLED):
        return Outcome.of(Exit(worker.code), worker.last_line)
    return finished or Outcome.of(Exit.WORKER_LOST, f"the learner exited ({worker.cause}){worker.detail}")


def learner_outcome(reported: LearnerOutcome, run_spec: RunSpec) -> Outcome | None:
    """The outcome of the run that the learner reported; None while it trains."""
    if reported == LearnerOutcome.RUNNING:
        return None
    if reported == LearnerOutcome.NON_FINITE:
        count, report = run_spec.config.loss.nonfinite_budget, run_spec.debug_dir / "non-finite.json"
        sentence = (
            f"{count} updates in a row had a loss or gradient that was not finite; lower optim.lr, or see {report}"
        )
        return Outcome.of(Exit.NON_FINITE, sentence)
    if code := EXITS.get(reported):
        return Outcome.of(code, SENTENCES[code])
    return Outcome.of(Exit.FINISHED, "")  # the recorder names the rule: it has the last counters


def add_last_update(outcome: Outcome, reported: LearnerOutcome, run_spec: RunSpec) -> None:
    """Add to the outcome what the learner reported when it exited.

    The update that a signal waits for may reach a stop rule: the run is finished then, and a scheduler need not start
    it again. Several learners may have agreed to stop in it. A last checkpoint that could not be written makes it a
    storage failure.
    """
    if reported == LearnerOutcome.STORAGE:
        outcome.name, outcome.code = Exit.STORAGE.outcome, int(Exit.STORAGE)
        outcome.sentence += "; the last checkpoint could not be written, see log.txt"
    elif outcome.stopped and reported in (LearnerOutcome.STOP_RULE, LearnerOutcome.NON_FINITE, *EXITS):
        found = learner_outcome(reported, run_spec)
        assert found is not None
        outcome.name, outcome.code, outcome.sentence = found.name, found.code, found.sentence
