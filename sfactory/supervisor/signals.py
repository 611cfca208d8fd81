"""What the outside wants of a run: handlers only note it, the loop acts on it between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from types import FrameType

from sfactory.run.recorder import Outcome
from sfactory.shm import atomics
from sfactory.supervisor.process_signals import signal_handlers
from sfactory.workers.shared import SAVE, SharedState

REQUEUE = 75


def ask_scheduler() -> str:
    """Tell SLURM to start this job again; what came of it, in words. Elsewhere exit code 75 says it all."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return "no SLURM job to requeue; the exit code is 75"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol requeue {job} failed: {error}"
    return f"scontrol requeue {job}: {'done' if done.returncode == 0 else done.stderr.strip()}"


class Signals:
    """Context manager: inside it, SIGINT, SIGTERM, SIGHUP and SIGUSR1 are noted."""

    def __init__(self, requeue: bool = False) -> None:
        self.requeue = requeue  # SIGUSR1, which schedulers send before the time is up, ends the run too
        self.stop = 0  # how often Ctrl-C, SIGTERM or SIGHUP came
        self.code = 0
        self.save = 0
        self._handlers = contextlib.ExitStack()

    def __enter__(self) -> Signals:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        self._handlers.enter_context(signal_handlers(numbers, self._note))
        return self

    def __exit__(self, *_: object) -> None:
        self._handlers.close()

    def ended(self) -> Outcome | None:
        """How the run ends if it was asked to."""
        if not self.stop:
            return None
        if self.code == REQUEUE:
            return Outcome("requeue", REQUEUE, "stopped to be started again by the scheduler")
        return Outcome("interrupted" if self.code == 130 else "terminated", self.code, "stopped by signal")

    def pass_on(self, shared: SharedState) -> None:
        """SIGUSR1 asks for a checkpoint: the learner compares this word with the one it saw last."""
        if self.save != int(shared.orders[SAVE]):
            atomics.store(shared.orders, SAVE, self.save)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save += 1
            if not self.requeue:
                return
            self.code = self.code or REQUEUE
        self.stop += 1
        self.code = self.code or (130 if number == signal.SIGINT else 143)
