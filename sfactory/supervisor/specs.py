"""Read the specs of a run's environments in a process of their own.

Building an environment runs code that is not ours: it may print, change the working directory or signal handlers, call
`sys.exit`, crash, hang, or leave processes behind. None of this reaches the process that called `train`: the child has
a time limit, its output goes to stderr, and its reaper ends what it leaves.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from sfactory.config import Config
from sfactory.envs import EnvError, EnvSpec
from sfactory.errors import UNGUARDED, UnknownEnvError
from sfactory.supervisor import reaper
from sfactory.supervisor.blas_threads import one_thread
from sfactory.supervisor.child_main import SpawnMessage
from sfactory.supervisor.spawn import STDERR, spawn
from sfactory.supervisor.spec_task import SpecTask
from sfactory.workers.names import SPECS

START_S = 300.0  # for the interpreter and the imports of the script that trains, before the clock of building begins
POLL_S = 0.05


class UnguardedError(RuntimeError):
    """The script that trains has no guard, and the child that imported it would have trained as well."""


def read_specs(config: Config) -> tuple[EnvSpec, ...]:
    """Return the specs of a run's tasks.

    Raises EnvError if an environment cannot be built, crashes, or takes longer than `env.build_timeout`;
    UnguardedError.
    """
    tasks, options, env_index = config.env.tasks, config.env.options, config.training_envs
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    message = SpawnMessage(SPECS, (), SpecTask(tasks, options, env_index, sender))
    process = spawn(message, secrets.token_hex(8), STDERR, one_thread(os.environ))
    sender.close()
    try:
        result = _receive(receiver, process, config.env.build_timeout * len(tasks), ", ".join(tasks))
    finally:
        receiver.close()
        if process.exitcode is None:
            assert process.pid is not None
            reaper.kill([process.pid], reaper.STOP)
            process.join(reaper.GIVE_UP_S)
    if isinstance(result, UnknownEnvError):
        raise _registered_here(tasks) or result
    if isinstance(result, Exception):
        raise result
    return tuple(result)


def _registered_here(tasks: Sequence[str]) -> EnvError | None:
    """The error for an id that this process has registered and its workers do not know; None if it has not."""
    registry = getattr(sys.modules.get("gymnasium"), "registry", {})
    for task in tasks:
        family, _, env_id = task.partition("/")
        if family == "gymnasium" and env_id in registry:
            return EnvError(
                f"{task} is registered in the main process only: workers do not run what stands below the guard of a "
                "script, or in a notebook; register it in a file of its own, for example my_envs.py, and train "
                f"gymnasium/my_envs:{env_id}"
            )
    return None


def _receive(receiver: Connection, process: BaseProcess, build_timeout: float, name: str) -> Any:
    """The result of the child; an EnvError if it sends none."""
    deadline, late = time.monotonic() + START_S, f"the process that builds it did not start within {START_S:g} s"
    is_open = True
    while time.monotonic() < deadline:
        code = process.exitcode  # before the pipe is read: what was sent before the exit is found
        if is_open and receiver.poll(POLL_S):
            try:
                result = receiver.recv()
            except EOFError:
                is_open = False
                continue
            if result is not None:
                return result
            deadline = time.monotonic() + build_timeout
            late = f"not built and closed again within {build_timeout:g} s (env.build-timeout)"
        elif code is not None:
            if code == UNGUARDED:
                raise UnguardedError
            cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return EnvError(f"{name} could not be built: it ended its process ({cause})", fault=True)
        elif not is_open:
            time.sleep(POLL_S)
    return EnvError(f"{name} could not be built: {late}", fault=True)
