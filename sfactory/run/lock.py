"""An exclusive lock on a folder, held by one process and released by the kernel when that process exits."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sfactory.errors import RunBusy


def lock_folder(folder: Path) -> int:
    """Lock `folder`/.lock and write the process id into it; returns its descriptor, whose close releases the lock.

    Raises RunBusy (exit 3), naming the process that holds it.
    """
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 64, 0).decode(errors="replace").strip()
        os.close(lock)
        raise RunBusy(f"{folder} is in use by process {holder or 'unknown'}") from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock
