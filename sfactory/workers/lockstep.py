"""Lockstep: the same workers in one process, in a fixed order. Deterministic: no clock and no arrival decides anything.

One turn is inference, then every sampler, then the learner: what was asked is answered with the newest weights, every
group takes one step, and as soon as a batch is full it is trained on, before anybody acts again. So data have lag 0, or
exactly the forced lag. A death is fatal here.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from sfactory import checkpoint
from sfactory.envs import EnvError
from sfactory.memory import words
from sfactory.workers import exact
from sfactory.workers.birth import REFUSED
from sfactory.workers.evaluator import Evaluator
from sfactory.workers.inference import Inference
from sfactory.workers.learner import Learner
from sfactory.workers.record import Outcome, Record
from sfactory.workers.roles import keep_memory
from sfactory.workers.sampler import Sampler
from sfactory.workers.signals import Signals
from sfactory.workers.wiring import FINISH, NON_FINITE, OUTCOME, STOP, STORAGE, Plan, Shared
from sfactory.workers.worker import ListPost


class Lockstep:
    """All workers of a plan, stepped by hand."""

    def __init__(self, plan: Plan) -> None:
        plan.debug_dir.mkdir(parents=True, exist_ok=True)
        self.shared, self.post = Shared.create(plan), ListPost()
        self.learner = Learner(self.shared, self.post)
        self.inference = Inference(self.shared, self.post, whole_batch=True)
        samplers = range(plan.config.sampling.num_samplers)
        self.samplers = [Sampler(index, self.shared, self.post) for index in samplers]

    def turn(self) -> bool:
        """One step of every group; True if it completed an update."""
        for worker in (self.inference, *self.samplers):
            worker.stages.mark("wait")  # the others' turn
            worker.step()
        self.learner.stages.mark("wait")
        if self.learner.finished() or not self.learner.step():
            return False
        for worker in (self.inference, *self.samplers, self.learner):
            worker.flush()
        return True

    def evaluate(self, evaluator: Evaluator, record: Record) -> None:
        """Play with the learner's weights, if an evaluation is due. Its time is no training time."""
        learner, board = self.learner, record.board
        if not learner.plan.evaluation_due(board.evaluated, learner.env_steps):
            return
        begun = time.monotonic()
        evaluator.model.load_state_dict(learner.model.state_dict())
        try:
            record.take(evaluator.evaluate(learner.env_steps))
        except (EnvError, RuntimeError) as error:
            board.evaluated = learner.env_steps
            record.writers.log(f"no evaluation at {learner.env_steps:,} steps: {error}")
        learner.clock += time.monotonic() - begun

    def close(self) -> None:
        for worker in (*self.samplers, self.inference, self.learner):
            worker.close()
        self.shared.close()


def run_lockstep(plan: Plan, record: Record) -> Outcome:
    """A whole run in this process, whose number of torch threads is as it was in the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    try:
        return _run(plan, record)
    finally:
        torch.set_num_threads(threads)


def _run(plan: Plan, record: Record) -> Outcome:
    saved = checkpoint.load_lockstep(Path(plan.resume_from)) if plan.resume_from else {}
    if saved:
        plan = replace(plan, launch=plan.launch - 1)  # the launch that saved goes on: its random numbers, not new ones
    try:
        run, outcome = Lockstep(plan), None
    except checkpoint.CheckpointError as error:
        return Outcome("refused", REFUSED, str(error))
    if plan.config.checkpoint.exact:
        try:
            exact.take(run, record.board)
        except EnvError as error:
            run.close()
            hint = "train without exact resume: --checkpoint.exact false"
            raise EnvError(f"{error}; {hint}") from error
        run.learner.exact = lambda: exact.take(run, record.board)
    if saved:
        exact.put_back(run, record.board, saved)
    elif plan.resume_from:
        record.writers.log("the checkpoint holds no environments: they begin anew, and this is not bit for bit")
    evaluator = Evaluator(plan) if plan.config.eval.every else None
    with Signals(plan.config.run.requeue) as signals:
        try:
            while outcome is None and not run.learner.finished():
                if run.turn():
                    signals.pass_on(run.shared)
                    outcome = signals.ended()
                    if evaluator is not None:  # before the messages: a row of this update tells what came of it
                        run.evaluate(evaluator, record)
                for message in run.post.take():
                    record.take(message)
                record.tell(run.shared)
                run.learner.save_if_due()
                outcome = outcome or record.reached()
            words.store(run.shared.orders, STOP, FINISH)
            said = int(run.shared.progress[OUTCOME])
            run.learner.leave()
            record.close_book(run.shared.book.ledger())
            for message in run.post.take():
                record.take(message)
            record.env_steps, record.seconds = run.learner.env_steps, run.learner.seconds  # rows come every few updates
            stored = int(run.shared.progress[OUTCOME]) != STORAGE
        finally:
            run.close()
    if not stored:
        return Outcome("storage", 10, "the last checkpoint could not be written, see log.txt")
    if outcome is not None:
        return outcome
    if said == NON_FINITE:
        return Outcome("non-finite", 9, "losses or gradients were not finite too often; lower optim.lr")
    return Outcome("finished", 0, "the stop rule was reached")
