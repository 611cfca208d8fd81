"""Lockstep: the same workers in one process, in a fixed order, without any clock. Deterministic.

One turn is inference, then every sampler, then the learner: pending requests get actions from the newest weights, every
group takes one step, and as soon as a batch is full the learner trains on it, before the next action. Data therefore
have lag 0, or exactly the forced lag. No worker is restarted here: an exception ends the run.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from sfactory.config import with_settings
from sfactory.envs import EnvError
from sfactory.errors import Exit
from sfactory.monitor import messages
from sfactory.run import checkpoint
from sfactory.run.outcome import Outcome
from sfactory.run.recorder import RunRecorder
from sfactory.supervisor import lockstep_state
from sfactory.supervisor.exit_rules import add_last_save, learner_outcome
from sfactory.supervisor.run_worker import keep_memory
from sfactory.supervisor.signals import SECOND_SIGNAL, Signals
from sfactory.workers.evaluator import PolicyPlayer
from sfactory.workers.inference import Inference
from sfactory.workers.learner import Learner
from sfactory.workers.names import POLICY
from sfactory.workers.sampler import Sampler
from sfactory.workers.shared import RunSpec, SharedState, StopOrder
from sfactory.workers.worker import ListSink


class Lockstep:
    """All workers of a run in this process; `turn` steps each of them once."""

    def __init__(self, run_spec: RunSpec) -> None:
        run_spec.debug_dir.mkdir(parents=True, exist_ok=True)
        self.shared, self.sink = SharedState.create(run_spec), ListSink()
        self.learner = Learner(self.shared, self.sink)
        self.inference = Inference(self.shared, self.sink, whole_batch=True)
        samplers = range(run_spec.config.sampling.samplers)
        self.samplers = [Sampler(index, self.shared, self.sink) for index in samplers]

    def turn(self) -> bool:
        """One step of every environment group; True if it completed an update."""
        for worker in (self.inference, *self.samplers):
            worker.stages.mark("wait")  # time spent in the other workers
            worker.step()
        self.learner.stages.mark("wait")
        if self.learner.finished() or not self.learner.step():
            return False
        for worker in (self.inference, *self.samplers, self.learner):
            worker.flush()
        return True

    def evaluate(self, player: PolicyPlayer, recorder: RunRecorder) -> None:
        """Evaluate the learner's weights if that is due. Its time does not count as training time."""
        learner, board = self.learner, recorder.board
        if not learner.run_spec.evaluation_due(board.evaluated, learner.env_steps):
            return
        start = time.monotonic()
        player.model.load_state_dict(learner.model.state_dict())
        try:
            recorder.handle(player.evaluate(learner.env_steps))
        except (EnvError, RuntimeError) as error:
            recorder.handle((messages.NO_EVALUATION, player.name, (learner.env_steps, str(error))))
        learner.counters.exclude(time.monotonic() - start)

    def record(self, recorder: RunRecorder) -> None:
        """Pass all telemetry to the recorder."""
        for message in self.sink.drain():
            recorder.handle(message)

    def close(self) -> None:
        for worker in (*self.samplers, self.inference, self.learner):
            worker.close()
        self.shared.close()


def run_lockstep(run_spec: RunSpec, recorder: RunRecorder, signals: Signals) -> Outcome:
    """A whole run in this process. Restores the process's number of torch threads at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    signals.interrupt = True  # an environment of this process may hang
    try:
        saved = checkpoint.load_lockstep(Path(run_spec.resume_from)) if run_spec.resume_from else {}
        if saved:  # continue the launch that saved: the same random numbers, computed by the same kernels
            run_spec = replace(_with_recorded_kernels(run_spec), launch=run_spec.launch - 1)
        try:
            run = Lockstep(run_spec)
        except checkpoint.CheckpointError as error:
            return Outcome.of(Exit.RESUME_REFUSED, str(error))
        try:
            _prepare(run, recorder, saved)
            return _train(run, recorder, signals)
        finally:
            run.close()
    except KeyboardInterrupt:
        outcome = signals.outcome()
        if outcome is None:  # it was no signal
            raise
        outcome.sentence += SECOND_SIGNAL
        return outcome
    finally:
        signals.interrupt = False
        torch.set_num_threads(threads)


def _with_recorded_kernels(run_spec: RunSpec) -> RunSpec:
    """`run.kernels auto` keeps what computed the network before."""
    recorded = checkpoint.recorded_kernels(Path(run_spec.resume_from))
    if run_spec.config.run.kernels != "auto" or recorded not in ("torch", "autograd"):
        return run_spec
    return replace(run_spec, config=with_settings(run_spec.config, {"run.kernels": recorded}))


def _prepare(run: Lockstep, recorder: RunRecorder, saved: dict) -> None:
    """Set up exact checkpoints, and restore the state that one of them saved."""
    run_spec = run.learner.run_spec
    if run_spec.config.checkpoint.exact:
        try:
            lockstep_state.capture(run, recorder.board)
        except EnvError as error:
            raise EnvError(f"{error}; train without exact resume: --checkpoint.exact false") from error
        run.learner.exact = lambda: lockstep_state.capture(run, recorder.board)
    if saved:
        recorded, present = checkpoint.recorded_kernels(Path(run_spec.resume_from)), run.learner.update.kernels
        if recorded != present:
            recorder.writers.log(f"kernels: {present}, but {recorded} before: this resume is not bit for bit")
        lockstep_state.restore(run, recorder.board, saved)
        run.shared.episodes.write(recorder.board.episodes.numbers())
    elif run_spec.resume_from:
        recorder.writers.log("the checkpoint holds no environments: they are reset, so this resume is not exact")


def _train(run: Lockstep, recorder: RunRecorder, signals: Signals) -> Outcome:
    """Turn after turn until the learner, a signal or the recorder ends the run; save the last checkpoint."""
    run_spec, learner, shared = run.learner.run_spec, run.learner, run.shared
    outcome = None
    player = PolicyPlayer(run_spec) if run_spec.config.eval.every else None
    while outcome is None and not learner.finished():
        if run.turn():
            signals.forward(shared)
            outcome = signals.outcome()
            if player is not None:  # before the telemetry: the row of this update reports the evaluation
                run.evaluate(player, recorder)
        run.record(recorder)
        shared.episodes.write(recorder.board.episodes.numbers())
        learner.save_if_due()
        outcome = outcome or recorder.outcome_from_messages()
    shared.supervisor.stop = StopOrder.FINISH
    outcome = outcome or learner_outcome(shared.learner[POLICY].outcome, run_spec)
    assert outcome is not None
    learner.leave()
    add_last_save(outcome, shared.learner[POLICY].outcome)
    recorder.record_row_counts(shared.slot_table.row_counts())
    run.record(recorder)
    return outcome
