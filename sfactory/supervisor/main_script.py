"""The script that starts a process: spawned processes import it again, which needs a guard and a file."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading

from sfactory.errors import UNGUARDED, CommandError, Exit
from sfactory.workers.names import ENVIRONMENTS, EVALUATOR, LOCKSTEP, parse_worker

GUARD = (
    "this script was imported again by the workers it started, and would have trained once more in each of them; "
    'put what it does below  if __name__ == "__main__":'
)

DAEMONIC = (
    "environments and workers are processes, and a daemonic process, as those of multiprocessing.Pool, may start none; "
    "use concurrent.futures.ProcessPoolExecutor, threads, or sfactory sweep"
)


class UnguardedError(RuntimeError):
    """A script has no guard, and the process that imported it again would have started one as well."""

    def __init__(self) -> None:
        super().__init__(GUARD)


def refuse_worker() -> None:
    """Refuse to start a process in a worker that is importing the script of its parent: the script has no guard.

    And in a daemonic process, which multiprocessing allows no children. ValueError.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):  # set by multiprocessing for as long as that import lasts
        if _reports_exit(process.name):
            os._exit(UNGUARDED)  # without a message: the parent reads the code and reports it once
        raise RuntimeError(GUARD)
    if process.daemon:
        raise CommandError(Exit.USAGE, DAEMONIC)


def _reports_exit(name: str) -> bool:
    """Whether a process name is one whose parent acts on the exit code UNGUARDED."""
    try:
        return name in (ENVIRONMENTS, LOCKSTEP) or parse_worker(name).kind != EVALUATOR
    except ValueError:
        return False


class _MissingMainFile:
    """Hides the file name `<stdin>` of `python - < script`, which every worker would try to import.

    The name is back when the last of the runs in this process's threads has ended.
    """

    def __init__(self) -> None:
        self._lock, self._runs, self._file = threading.Lock(), 0, ""

    def __enter__(self) -> None:
        with self._lock:
            main = sys.modules["__main__"]
            file = getattr(main, "__file__", None)
            if not self._runs and file is not None and not os.path.exists(file):
                self._file = file
                del main.__file__
            self._runs += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._runs -= 1
            if not self._runs and self._file:
                sys.modules["__main__"].__file__, self._file = self._file, ""


MISSING_MAIN_FILE = _MissingMainFile()
