"""First code of every worker process: arm the death signal, redirect output, then run the worker.

Only the standard library is imported at the top: the death signal is armed before any heavy import. Output goes to a
file of the worker's own in the run's debug folder: workers never write to the terminal, and the supervisor reads the
last line of that file when a worker exits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

from sfactory.supervisor.process_signals import death_signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that only the supervisor acts on."""


class SpawnMessage:
    """Arguments of a new process. The payload, whose import is slow, is unpickled after the signal is armed."""

    def __init__(self, name: str, parent: int, fds: tuple[int, ...], output_file: str, payload: Any) -> None:
        self.name, self.parent, self.fds, self.output_file, self.payload = name, parent, fds, output_file, payload

    def __getstate__(self) -> tuple[Any, ...]:
        payload = bytes(ForkingPickler.dumps(self.payload))
        return self.name, self.parent, [DupFd(fd) for fd in self.fds], self.output_file, payload

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name, self.parent, handles, self.output_file, self.payload = state
        self.fds = tuple(handle.detach() for handle in handles)


def _exit_with(parent: int) -> None:
    """Have the kernel kill this process when its parent exits."""
    death_signal(signal.SIGKILL)()
    if os.getppid() != parent:  # the parent exited before the signal was armed
        os._exit(1)


def child_main(message: SpawnMessage) -> None:
    """Entry point of every child process."""
    _exit_with(message.parent)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    output = os.open(message.output_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for number in SIGNALS:  # empty handlers, not SIG_IGN: children of an environment can still be terminated
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    import faulthandler

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    code = 1
    try:
        from sfactory.supervisor.run_worker import run_worker  # imports what this worker needs

        code = run_worker(message.name, message.fds, ForkingPickler.loads(message.payload))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skips atexit handlers, which may hang in an environment
