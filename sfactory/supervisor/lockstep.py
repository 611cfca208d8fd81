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

from sfactory.envs import EnvError
from sfactory.errors import Exit
from sfactory.run import checkpoint
from sfactory.run.recorder import Outcome, RunRecorder
from sfactory.shm import atomics
from sfactory.supervisor import lockstep_state
from sfactory.supervisor.run_worker import keep_memory
from sfactory.supervisor.signals import Signals
from sfactory.workers.evaluator import PolicyPlayer
from sfactory.workers.inference import Inference
from sfactory.workers.learner import Learner
from sfactory.workers.sampler import Sampler
from sfactory.workers.shared import FINISH, NON_FINITE, OUTCOME, STOP, STORAGE, RunSpec, SharedState
from sfactory.workers.worker import ListSink


class Lockstep:
    """All workers of a run_spec, stepped by hand."""

    def __init__(self, run_spec: RunSpec) -> None:
        run_spec.debug_dir.mkdir(parents=True, exist_ok=True)
        self.shared, self.sink = SharedState.create(run_spec), ListSink()
        self.learner = Learner(self.shared, self.sink)
        self.inference = Inference(self.shared, self.sink, whole_batch=True)
        samplers = range(run_spec.config.sampling.num_samplers)
        self.samplers = [Sampler(index, self.shared, self.sink) for index in samplers]

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

    def evaluate(self, evaluator: PolicyPlayer, recorder: RunRecorder) -> None:
        """Play with the learner's weights, if an evaluation is due. Its time is no training time."""
        learner, board = self.learner, recorder.board
        if not learner.run_spec.evaluation_due(board.evaluated, learner.env_steps):
            return
        begun = time.monotonic()
        evaluator.model.load_state_dict(learner.model.state_dict())
        try:
            recorder.handle(evaluator.evaluate(learner.env_steps))
        except (EnvError, RuntimeError) as error:
            board.evaluated = learner.env_steps
            recorder.writers.log(f"no evaluation at {learner.env_steps:,} steps: {error}")
        learner.clock += time.monotonic() - begun

    def close(self) -> None:
        for worker in (*self.samplers, self.inference, self.learner):
            worker.close()
        self.shared.close()


def run_lockstep(run_spec: RunSpec, recorder: RunRecorder) -> Outcome:
    """A whole run in this process, whose number of torch threads is as it was in the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    try:
        return _run(run_spec, recorder)
    finally:
        torch.set_num_threads(threads)


def _run(run_spec: RunSpec, recorder: RunRecorder) -> Outcome:
    saved = checkpoint.load_lockstep(Path(run_spec.resume_from)) if run_spec.resume_from else {}
    if saved:
        run_spec = replace(run_spec, launch=run_spec.launch - 1)  # the launch that saved goes on: its random numbers, not new ones
    try:
        run, outcome = Lockstep(run_spec), None
    except checkpoint.CheckpointError as error:
        return Outcome("refused", Exit.RESUME_REFUSED, str(error))
    if run_spec.config.checkpoint.exact:
        try:
            lockstep_state.capture(run, recorder.board)
        except EnvError as error:
            run.close()
            hint = "train without exact resume: --checkpoint.exact false"
            raise EnvError(f"{error}; {hint}") from error
        run.learner.exact = lambda: lockstep_state.capture(run, recorder.board)
    if saved:
        lockstep_state.restore(run, recorder.board, saved)
    elif run_spec.resume_from:
        recorder.writers.log("the checkpoint holds no environments: they begin anew, and this is not bit for bit")
    evaluator = PolicyPlayer(run_spec) if run_spec.config.eval.every else None
    with Signals(run_spec.config.run.requeue) as signals:
        try:
            while outcome is None and not run.learner.finished():
                if run.turn():
                    signals.pass_on(run.shared)
                    outcome = signals.ended()
                    if evaluator is not None:  # before the messages: a row of this update tells what came of it
                        run.evaluate(evaluator, recorder)
                for message in run.sink.drain():
                    recorder.handle(message)
                run.shared.set_training_return(recorder.training_return)
                run.learner.save_if_due()
                outcome = outcome or recorder.outcome_from_messages()
            atomics.store(run.shared.orders, STOP, FINISH)
            said = int(run.shared.progress[OUTCOME])
            run.learner.leave()
            recorder.record_row_counts(run.shared.slot_table.row_counts())
            for message in run.sink.drain():
                recorder.handle(message)
            recorder.env_steps, recorder.seconds = run.learner.env_steps, run.learner.seconds  # rows come every few updates
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
