"""Signal handlers and the death signal, shared by the supervisor, its workers and sweeps. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def signal_handlers(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install one handler for several signals and restore the previous handlers. No effect outside the main thread.

    A signal that is ignored stays ignored: `nohup`, and a shell that starts a command in the background, ask for that.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def exits_are_reported() -> Iterator[None]:
    """Let this process see how its children exit, also if it was started with SIGCHLD ignored.

    No effect outside the main thread, where no handler can be set.
    """
    ignored = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN
    )
    if ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def death_signal(number: int) -> Callable[[], None]:
    """Return a function that requests signal `number` for the calling process when its parent exits (Linux only).

    libc is loaded here, not in the returned function, so that it can run between fork and exec.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def request() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, int(number))

    return request
