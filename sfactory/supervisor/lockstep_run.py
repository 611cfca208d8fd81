"""A whole lockstep run in one child process, which the process of the command records (`lockstep_process.py`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sfactory.config import Env, with_settings
from sfactory.envs import EnvError
from sfactory.errors import Exit, LearnerLost
from sfactory.monitor import messages
from sfactory.monitor.messages import Message
from sfactory.run import checkpoint
from sfactory.run.outcome import Outcome
from sfactory.supervisor import lockstep_state
from sfactory.supervisor.exit_rules import add_last_update, learner_outcome
from sfactory.supervisor.lockstep import Lockstep
from sfactory.supervisor.lockstep_link import End, Inside, Link, Orders
from sfactory.workers.evaluator import PolicyPlayer
from sfactory.workers.learner import Learner
from sfactory.workers.names import POLICY
from sfactory.workers.shared import RunSpec, SharedHandles, SharedState, StopOrder


class EvaluationClock:
    """Tells the parent which time limit holds for the environments of an evaluation."""

    REPORT_S = 1.0

    def __init__(self, link: Link, env: Env) -> None:
        self.link, self.env = link, env
        self._reported: tuple[str, int] | None = None  # the limit that holds, and of how many environments
        self._reported_at = 0.0

    def own(self) -> None:
        """Our own code between two calls takes next to no time: the limit goes on."""

    def step(self, environments: int) -> None:
        self._report("environment step", environments, self.env.step_timeout, "env.step-timeout")

    def build(self, environments: int) -> None:
        self._report("building an environment", environments, self.env.build_timeout, "env.build-timeout")

    def stop(self) -> None:
        """No environment of an evaluation runs any more."""
        self.link.inside(None)
        self._reported = None

    def _report(self, what: str, environments: int, seconds: float, setting: str) -> None:
        """Start the time limit. Cheap: the same limit is reported once a second at most."""
        now, report = time.monotonic(), (what, environments)
        if report != self._reported or now - self._reported_at > min(self.REPORT_S, seconds / 4):
            self.link.inside(Inside("in an evaluation", what, environments * seconds, setting))
            self._reported, self._reported_at = report, now


class Evaluation:
    """Evaluates the learner's weights between two updates. Its time does not count as training time."""

    def __init__(self, learner: Learner, link: Link) -> None:
        self.learner, self.player = learner, PolicyPlayer(learner.run_spec)
        self.clock = EvaluationClock(link, learner.config.env)

    def messages(self, evaluated: int) -> list[Message]:
        """The results, if an evaluation is due. evaluated: trained steps of the policy that was evaluated last."""
        learner, player, clock = self.learner, self.player, self.clock
        if not learner.run_spec.evaluation_due(evaluated, learner.env_steps):
            return []
        start = time.monotonic()
        player.model.load_state_dict(learner.model.state_dict())
        message: Message
        notes = list[Message]()
        try:
            message = player.evaluate(learner.env_steps, clock)
            notes = player.film(learner.env_steps, clock)
        except (EnvError, RuntimeError) as error:
            message = messages.NO_EVALUATION, player.name, (learner.env_steps, str(error))
        clock.stop()
        learner.counters.exclude(time.monotonic() - start)
        return [message, *notes]


def train(run_spec: RunSpec, handles: SharedHandles, link: Link) -> None:
    """A whole run in this process, which the parent records."""
    saved = checkpoint.load_lockstep(Path(run_spec.resume_from), run_spec.ranks) if run_spec.resume_from else {}
    if saved:  # continue the launch that saved: the same random numbers, computed by the same kernels
        run_spec = replace(_with_recorded_kernels(run_spec), launch=run_spec.launch - 1)
    try:
        run = Lockstep(run_spec, SharedState(run_spec, handles))
    except checkpoint.CheckpointError as error:
        link.refuse(str(error))
        return
    try:
        _prepare(run, link, saved)
        end = _train(run, link)
    except LearnerLost as error:
        end = _end(run, Outcome.of(error.exit_code, str(error)))
    link.end(end)
    run.close()


def _with_recorded_kernels(run_spec: RunSpec) -> RunSpec:
    """`run.kernels auto` keeps what computed the network before."""
    recorded = checkpoint.recorded_kernels(Path(run_spec.resume_from))
    if run_spec.config.run.kernels != "auto" or recorded not in ("torch", "autograd"):
        return run_spec
    return replace(run_spec, config=with_settings(run_spec.config, {"run.kernels": recorded}))


def _prepare(run: Lockstep, link: Link, saved: dict[str, np.ndarray]) -> None:
    """Set up exact checkpoints, and restore the state that one of them saved."""
    run_spec = run.learner.run_spec

    def state() -> dict[str, np.ndarray]:
        with _inside_all(run_spec, link, "saving"):
            return lockstep_state.capture(run, link.board())

    if run_spec.config.checkpoint.exact:
        try:
            state()
        except EnvError as error:
            without = "--checkpoint.exact false, in Python checkpoint={'exact': False}"
            raise EnvError(f"{error}; train without exact resume: {without}") from error
        run.learner.exact = state
    if saved:
        recorded, present = checkpoint.recorded_kernels(Path(run_spec.resume_from)), run.learner.update.kernels
        if recorded != present:
            link.log(f"kernels: {present}, but {recorded} before: this resume is not bit for bit")
        with _inside_all(run_spec, link, "restoring"):
            link.set_board(lockstep_state.restore(run, saved))
    elif run_spec.resume_from:
        link.log("the checkpoint holds no environments of this rank: they are reset, so this resume is not exact")


@contextlib.contextmanager
def _inside_all(run_spec: RunSpec, link: Link, doing: str) -> Iterator[None]:
    """Time limit while the state of all environments is read or written."""
    seconds = run_spec.config.sampling.num_envs * run_spec.config.env.step_timeout
    link.inside(Inside(f"{doing} environments", f"{doing} the environments", seconds, "env.step-timeout"))
    yield
    link.inside(None)


def _train(run: Lockstep, link: Link) -> End:
    """Turn after turn until the learner or the parent ends the run; save the last checkpoint."""
    run_spec, learner, shared = run.learner.run_spec, run.learner, run.shared
    evaluation = Evaluation(learner, link) if run_spec.config.eval.every else None
    orders = link.begin()
    while orders.outcome is None and not learner.finished():
        updated, found = run.turn(), list[Message]()
        if updated and evaluation is not None:  # before the telemetry: the row of this update reports the evaluation
            found = evaluation.messages(orders.evaluated)
        found += run.sink.drain()
        if found or updated:
            orders = link.record(found, updated)
        if updated and orders.save_requests != shared.supervisor.save_requests:
            shared.supervisor.save_requests = orders.save_requests
        if not _is_taken(orders):
            learner.save_if_due()
    shared.supervisor.stop = StopOrder.NOW if _is_taken(orders) else StopOrder.FINISH
    reached = learner_outcome(shared.learner[POLICY].outcome, run_spec)
    outcome = orders.outcome if _is_taken(orders) else reached or orders.outcome
    assert outcome is not None
    learner.leave()
    add_last_update(outcome, shared.learner[POLICY].outcome, run_spec)
    return _end(run, outcome)


def _is_taken(orders: Orders) -> bool:
    """Whether the run's folder belongs to another run now, so that no checkpoint may be written there."""
    return orders.outcome is not None and orders.outcome.code == Exit.STORAGE


def _end(run: Lockstep, outcome: Outcome) -> End:
    return End(outcome, run.shared.slot_table.row_counts(), run.shared.rows_by_task(), run.sink.drain())
