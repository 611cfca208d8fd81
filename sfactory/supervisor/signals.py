"""Signals to the supervisor: handlers only count them, the main loop acts on them between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from types import FrameType

from sfactory.errors import Exit
from sfactory.run.outcome import Outcome
from sfactory.supervisor.process_signals import signal_handlers
from sfactory.workers.shared import LearnerOutcome, SharedState

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def requeue_job() -> str:
    """Ask SLURM to start this job again; return the result as a log line. Other schedulers act on exit code 75."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return "no SLURM job to requeue; the exit code is 75"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol requeue {job} failed: {error}"
    return f"scontrol requeue {job}: {'done' if done.returncode == 0 else done.stderr.strip()}"


AGREE_S = 10.0
"""For the learners of a job to stop after the same update, when a signal has come to one of them."""
PROPOSALS = {
    Exit.INTERRUPTED: LearnerOutcome.INTERRUPTED,
    Exit.TERMINATED: LearnerOutcome.TERMINATED,
    Exit.REQUEUE: LearnerOutcome.REQUEUED,
}
SENTENCES = {
    Exit.INTERRUPTED: "stopped by signal",
    Exit.TERMINATED: "stopped by signal",
    Exit.REQUEUE: "stopped to be started again by the scheduler",
}
SECOND_SIGNAL = "; stopped by a second signal without waiting for a checkpoint"


class Signals:
    """Context manager that counts SIGINT, SIGTERM, SIGHUP and SIGUSR1 instead of acting on them."""

    def __init__(self, requeue: bool = False, alone: bool = True) -> None:
        """requeue: SIGUSR1, which schedulers send before the time limit, ends the run too.

        alone: the learner need not ask other learners of its job before it stops.
        """
        self.requeue, self.alone = requeue, alone
        self.stop_count = 0  # signals that end the run
        self.save_count = 0  # signals that request a checkpoint
        self._exit: Exit | None = None  # by the first signal that ends the run
        self._since = 0.0  # when that was
        self._handlers = contextlib.ExitStack()

    def __enter__(self) -> Signals:
        self._handlers.enter_context(signal_handlers(HANDLED, self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        self._handlers.close()

    def outcome(self) -> Outcome | None:
        """The outcome of the run if a signal ends it. With several learners: if they have not ended it together."""
        if not self.stop_count:
            return None
        assert self._exit is not None
        if not self.alone and self.stop_count == 1 and time.monotonic() - self._since < AGREE_S:
            return None
        apart = "" if self.alone else "; the other learners of the job were not waited for"
        return Outcome.of(self._exit, SENTENCES[self._exit] + apart)

    def forward(self, shared: SharedState) -> None:
        """Pass requests for a checkpoint on to the learner."""
        if self.save_count != shared.supervisor.save_requests:
            shared.supervisor.save_requests = self.save_count
        self.propose(shared)

    def propose(self, shared: SharedState) -> None:
        """With several learners: let this one propose to all of them what a signal asks for."""
        if self._exit is not None and not self.alone:
            shared.supervisor.proposal = PROPOSALS[self._exit]

    def request_save(self) -> None:
        """Ask for a checkpoint, as SIGUSR1 does."""
        self.save_count += 1

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save_count += 1
            if not self.requeue:
                return
            self._exit = self._exit or Exit.REQUEUE
        self.stop_count += 1
        self._since = self._since or time.monotonic()
        self._exit = self._exit or (Exit.INTERRUPTED if number == signal.SIGINT else Exit.TERMINATED)
