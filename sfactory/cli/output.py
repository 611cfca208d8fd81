"""Keep stdout for results: whatever environments and libraries print goes to stderr.

Environments print in Python, in C, and from processes they start, while they are imported, built and stepped. A command
with --json must write nothing else on stdout.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr, for Python and for everything else in this process, and restore it."""
    before = sys.stdout
    _flush()
    try:
        saved = os.dup(1)
    except OSError:  # stdout was closed before this process started
        saved = -1
    _redirect()
    try:
        yield
    finally:
        _flush()
        sys.stdout = before
        if saved >= 0:
            os.dup2(saved, 1)
            os.close(saved)


@functools.cache
def silence_stdout_at_exit() -> None:
    """Redirect stdout to stderr when the interpreter exits, before the exit handlers that exist by now."""
    atexit.register(_redirect_for_good)


def _redirect_for_good() -> None:
    _flush()
    _redirect()


def _redirect() -> None:
    sys.stdout = sys.stderr
    with contextlib.suppress(OSError):  # stderr is closed
        os.dup2(2, 1)


def _flush() -> None:
    """Write what Python and the C library hold back for stdout."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or None
        sys.stdout.flush()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
