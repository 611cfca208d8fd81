"""An exclusive lock on a folder, held by one process and released by the kernel when that process exits."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sfactory.errors import RunBusy
from sfactory.files import open_lock

LOCK = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""Errors that mean that another process has the lock. All others mean that the file system has no locks."""


def print_warning(line: str) -> None:
    """Print one line on stderr."""
    print(line, file=sys.stderr, flush=True)


def lock_folder(folder: Path, warn: Callable[[str], object] = print_warning) -> int:
    """Lock `folder`/.lock and write the process id into it; returns its descriptor, whose close releases the lock.

    warn: called with one line where the file system has no locks: then nothing keeps two processes apart.
    Raises RunBusy (exit 3), naming the process that holds the lock; FileRefused (exit 2) if `.lock` is a link.
    """
    lock = open_lock(folder / LOCK)
    try:
        _lock_file(lock, folder, warn)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _lock_file(lock: int, folder: Path, warn: Callable[[str], object]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            holder = os.pread(lock, 64, 0).decode(errors="replace").strip()
            raise RunBusy(f"{folder} is in use by process {holder or 'unknown'}") from error
        warn(
            f"warning: the file system of {folder} has no locks ({error.strerror}); do not start a second command that "
            "writes into this folder, it would not be refused"
        )
