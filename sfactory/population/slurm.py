"""Start runs as jobs of SLURM through submitit: one job per run, in a queue that others manage.

Before the time limit of a job SLURM sends SIGUSR1 to its processes. The run saves and exits with 75, which becomes the
result of the job, and the command that submitted it submits it again. submitit itself requeues nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfactory.config.values import from_text
from sfactory.errors import CommandError, Exit
from sfactory.files import replace_text
from sfactory.population.commands import LOST, Command, Handle, Resources, start

SIGNAL = "SUBMITIT_PREEMPT_SIGNAL"
"""Environment variable of submitit: the signal before the time limit. Its default, USR2, would end a run at once."""
ONE_DAY_MIN = 24 * 60
POLL_S = 0.2
RESULT_S = 10.0
"""Time for the result of a job to appear on a shared file system."""


class SlurmLauncher:
    """Submits jobs. A job of the same name that an earlier command submitted and that is not over is used instead."""

    reruns = True

    def __init__(self, folder: Path, options: Mapping[str, str]) -> None:
        """folder: for submitit's files. options: of submitit's executor; `cluster=local` runs the jobs here.

        Raises CommandError for options that submitit does not know, or without SLURM.
        """
        os.environ.setdefault(SIGNAL, "USR1")  # read when submitit is imported, here and in the jobs
        import submitit

        values: dict[str, Any] = {"timeout_min": ONE_DAY_MIN, **{name: from_text(x) for name, x in options.items()}}
        cluster = str(values.pop("cluster", "slurm"))
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.executor = submitit.AutoExecutor(folder=self.folder, cluster=cluster)
            known = self.executor._typed_parameters()
            self.options = {name if name in known else f"slurm_{name}": value for name, value in values.items()}
            self.executor.update_parameters(**self.options)
        except (RuntimeError, ValueError, NameError, AssertionError, TypeError) as error:
            sentence = " ".join(str(error).split())
            hint = "; to try it here: --slurm cluster=local" if isinstance(error, RuntimeError) else ""  # no srun
            raise CommandError(Exit.USAGE, f"--launcher slurm: {sentence}{hint}") from None

    def submit(self, command: Command, resources: Resources) -> Handle:
        """Submit a job, or find the one that is there."""
        if (found := self._earlier(command.name)) is not None:
            return found
        asked = {"name": command.name, "cpus_per_task": resources.cores, "gpus_per_node": resources.gpus or None}
        self.executor.update_parameters(**{**asked, **self.options})
        job = self.executor.submit(carry_out, command)
        replace_text(self._file(command.name), str(job.job_id) + "\n")
        return SlurmHandle(job)

    def close(self) -> None:
        """Jobs go on without this process."""

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.job"

    def _earlier(self, name: str) -> SlurmHandle | None:
        """A job of this name that waits or runs."""
        with contextlib.suppress(FileNotFoundError):
            job_id = self._file(name).read_text().strip()
            job = self.executor._executor.job_class(self.folder, job_id)
            return None if job.done() else SlurmHandle(job)
        return None


class SlurmHandle:
    """A job."""

    def __init__(self, job: Any) -> None:
        self.job = job
        self.cancelled = False
        self._lost_at: float | None = None
        """When it was over without a result."""

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        if not self.job.paths.result_pickle.exists():  # its node was lost, or it was killed; submitit would wait
            self._lost_at = self._lost_at or time.monotonic()
            is_lost = self.cancelled or time.monotonic() - self._lost_at > RESULT_S
            return LOST if is_lost else None
        from submitit.core.utils import FailedJobError

        try:
            return int(self.job.result())
        except FailedJobError:  # of submitit itself, on the node
            return LOST

    def cancel(self, number: int) -> None:
        """Cancel the job: SLURM sends SIGTERM to its processes, and SIGKILL later."""
        self.cancelled = True
        self.job.cancel(check=False)


def carry_out(command: Command) -> int:
    """Run a command inside a job and return its exit code."""
    inside = {name: x for name, x in os.environ.items() if name.startswith(("SLURM", "CUDA_VISIBLE"))}
    # Without the id a run does not ask SLURM itself to be started again.
    environment = {**command.environment, **inside}
    environment.pop("SLURM_JOB_ID", None)
    process = start(Command(command.name, command.arguments, command.output, environment, command.folder))
    forwards = os.environ.get("SUBMITIT_EXECUTOR") != "slurm"  # SLURM sends its signals to every process of a job

    def stop(number: int, frame: object) -> None:
        if forwards:
            process.send_signal(number)

    signal.signal(getattr(signal, f"SIG{os.environ.get(SIGNAL, 'USR1')}"), stop)
    return _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> int:
    while process.poll() is None:
        time.sleep(POLL_S)
    return int(process.returncode)
