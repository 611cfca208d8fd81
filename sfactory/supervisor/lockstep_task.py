"""The task of the process of a lockstep run. Few imports: torch is loaded by that process alone."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection

from sfactory.device.loading import loading_torch
from sfactory.supervisor.lockstep_link import Link
from sfactory.supervisor.run_worker import handles_from_fds, keep_memory
from sfactory.workers.shared import RunSpec


@dataclass(frozen=True)
class LockstepTask:
    """Task of the child process: train in lockstep."""

    run_spec: RunSpec
    connection: Connection

    def run(self, name: str, fds: tuple[int, ...]) -> int:
        """See `child_main.Task`. A SystemExit or KeyboardInterrupt is not caught: an environment raised it."""
        keep_memory()
        with loading_torch(frozen=True):
            import torch

            from sfactory.supervisor.lockstep_run import train

        torch.set_num_threads(1)
        link = Link(self.connection)
        try:
            train(self.run_spec, handles_from_fds(fds), link)
        except Exception as error:
            link.fail(error)
        return 0
