"""Start runs as tasks of Ray: on the cluster that RAY_ADDRESS names, else on one that is started for the command."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from typing import Any

from sfactory.errors import CommandError, Exit
from sfactory.population.commands import LOST, Command, Handle, Resources, start

ADDRESS = "RAY_ADDRESS"
"""Ray's own environment variable: `auto`, or HOST:PORT of a cluster."""
POLL_S = 0.2
CONNECT_S = 10.0


class RayLauncher:
    """Submits tasks. Ray decides where and when they run; a task whose worker died is reported as lost."""

    reruns = True

    def __init__(self, parallel: int, resources: Resources) -> None:
        """parallel: runs at the same time; a cluster that is started here has room for as many of them.

        Raises CommandError (exit 2) if there is no cluster at RAY_ADDRESS.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a run without GPUs keeps its own variables
        import ray

        self.ray = ray
        address = os.environ.get(ADDRESS)
        here: dict[str, Any] = {"address": "local", "num_cpus": parallel * resources.cores, "include_dashboard": False}
        if resources.gpus:
            here["num_gpus"] = parallel * resources.gpus
        try:
            if address:
                _require_answer(address)
            ray.init(**({} if address else here), log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, TimeoutError, socket.gaierror, RuntimeError, ValueError) as error:
            where = f"no cluster at {ADDRESS} {address}" if address else "no cluster can be started here"
            raise CommandError(Exit.USAGE, f"--launcher ray: {where}: {' '.join(str(error).split())}") from None

    def submit(self, command: Command, resources: Resources) -> Handle:
        """Submit a task. Ray does not repeat it itself: its folder says how it goes on."""
        task = self.ray.remote(carry_out).options(
            name=command.name, num_cpus=resources.cores, num_gpus=resources.gpus, max_retries=0
        )
        return RayHandle(self.ray, task.remote(command))

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        self.ray.shutdown()


class RayHandle:
    """A task."""

    def __init__(self, ray: Any, task: Any) -> None:
        self.ray, self.task = ray, task

    def poll(self) -> int | None:
        ended, _ = self.ray.wait([self.task], timeout=0, fetch_local=False)
        if not ended:
            return None
        try:
            return int(self.ray.get(self.task))
        except self.ray.exceptions.TaskCancelledError:
            return -int(signal.SIGTERM)
        except self.ray.exceptions.RayTaskError as error:  # the command could not be started there
            raise error.cause from None
        except self.ray.exceptions.RayError:  # its worker or node died
            return LOST

    def cancel(self, number: int) -> None:
        """Interrupt the task, which passes SIGTERM on; SIGKILL kills its worker."""
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.cancel(self.task, force=number == signal.SIGKILL)


def _require_answer(address: str) -> None:
    """OSError if nothing listens at HOST:PORT: Ray itself would try for minutes. Other forms are left to Ray."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_S).close()


def carry_out(command: Command) -> int:
    """Run a command inside a task and return its exit code."""
    environment = dict(command.environment)
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # the GPUs that Ray gave to this task
        environment["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
    process = start(Command(command.name, command.arguments, command.output, environment, command.folder))
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
    except KeyboardInterrupt:  # cancelled
        process.send_signal(signal.SIGTERM)
        process.wait()
    return int(process.returncode)
