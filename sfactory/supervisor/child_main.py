"""First code of every worker process: arm the death signal, redirect output, then run the worker.

Standard library only at the top: the death signal is armed before any heavy import. The output goes to a file of the
worker's own in the run's debug folder: workers never write to the terminal, and their last lines need no queue.
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

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # handled by the supervisor alone


class SpawnMessage:
    """What a new process gets: unpickled in two steps, so that nothing heavy is imported before the signal is armed."""

    def __init__(self, name: str, parent: int, fds: tuple[int, ...], last_words: str, payload: Any) -> None:
        self.name, self.parent, self.fds, self.last_words, self.payload = name, parent, fds, last_words, payload

    def __getstate__(self) -> tuple[Any, ...]:
        payload = bytes(ForkingPickler.dumps(self.payload))
        return self.name, self.parent, [DupFd(fd) for fd in self.fds], self.last_words, payload

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name, self.parent, handles, self.last_words, self.payload = state
        self.fds = tuple(handle.detach() for handle in handles)


def _die_with(parent: int) -> None:
    death_signal(signal.SIGKILL)()
    if os.getppid() != parent:  # the parent died before the death signal was armed
        os._exit(1)


def child_main(message: SpawnMessage) -> None:
    """First function of every child process."""
    _die_with(message.parent)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    words = os.open(message.last_words, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(words, 1)
    os.dup2(words, 2)
    for number in SIGNALS:  # empty handlers, not SIG_IGN: an environment's own children can still be terminated
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
    os._exit(code)  # nothing that hangs in an atexit handler of an environment may keep us
