"""The streams of a command: stdout holds results only, and neither stream can change how the command ends.

Environments print in Python, in C, and from processes they start, while they are imported, built and stepped. A command
with --json must write nothing else on stdout, so whatever they print goes to stderr.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator

from sfactory.monitor.console import GONE, ConsoleStream, fill_closed_descriptors, unfailing


def open_streams() -> ConsoleStream:
    """Replace stdout and stderr by streams that never fail; returns stderr, which never blocks for long.

    Whatever happens to its outputs, a command ends with its own exit code. Results wait for their reader as usual.
    """
    fill_closed_descriptors()
    sys.stdout = unfailing(sys.stdout, buffered=True, on_error=_report_lost_results)
    sys.stderr = console = ConsoleStream(sys.stderr)
    atexit.register(console.close)
    return console


def _report_lost_results(error: OSError) -> None:
    """Say that results are incomplete, except to a reader that has exited, such as `head`."""
    if error.errno not in GONE:
        print(f"sfactory: note: standard output cannot be written: {error.strerror}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr, for Python and for everything else in this process, and restore it."""
    before = sys.stdout
    flush_stdout()
    try:
        saved = os.dup(1)
    except OSError:  # stdout was closed before this process started
        saved = -1
    _redirect()
    try:
        yield
    finally:
        flush_stdout()
        sys.stdout = before
        if saved >= 0:
            os.dup2(saved, 1)
            os.close(saved)


@functools.cache
def silence_stdout_at_exit() -> None:
    """Redirect stdout to stderr when the interpreter exits, before the exit handlers that exist by now."""
    atexit.register(_redirect_for_good)


def _redirect_for_good() -> None:
    flush_stdout()
    _redirect()


def _redirect() -> None:
    sys.stdout = sys.stderr
    with contextlib.suppress(OSError):  # stderr is closed
        os.dup2(2, 1)


def flush_stdout() -> None:
    """Write what Python and the C library hold back for stdout."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or None
        sys.stdout.flush()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
