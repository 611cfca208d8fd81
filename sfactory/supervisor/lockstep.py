"""Lockstep: the same workers in one process, in a fixed order, without any clock. Deterministic.

One turn is inference, then every sampler, then the learner: pending requests get actions from the newest weights, every
group takes one step, and as soon as a batch is full the learner trains on it, before the next action. Data therefore
have lag 0, or exactly the forced lag. No worker is restarted here: an exception ends the run.

A run is one child process (`lockstep_run.py`) below the process of the command (`lockstep_process.py`).
"""

from __future__ import annotations

from sfactory.workers.inference import Inference
from sfactory.workers.learner import Learner
from sfactory.workers.sampler import Sampler
from sfactory.workers.shared import RunSpec, SharedState
from sfactory.workers.worker import ListSink


class Lockstep:
    """All workers of a run in this process; `turn` steps each of them once."""

    def __init__(self, run_spec: RunSpec, shared: SharedState | None = None) -> None:
        """shared: memory that another process has created; by default it is created here."""
        run_spec.debug_dir.mkdir(parents=True, exist_ok=True)
        self.shared, self.sink = shared or SharedState.create(run_spec), ListSink()
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

    def close(self) -> None:
        for worker in (*self.samplers, self.inference, self.learner):
            worker.close()
        self.shared.close()
