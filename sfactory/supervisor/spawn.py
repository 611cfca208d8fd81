"""Start a worker process; kill it and its children when the supervisor is gone."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

from sfactory.supervisor.child_main import SIGNALS, SpawnMessage, child_main

# Reads "+ PGID" and "- PGID" lines from the worker pipe; at its end (the supervisor is gone) kills what is listed.
_ORPHAN_KILLER = """
trap '' INT TERM HUP USR1
groups=
while read -r op id; do
  case $op in
    +) groups="$groups $id" ;;
    -) left=; for g in $groups; do [ "$g" = "$id" ] || left="$left $g"; done; groups=$left ;;
  esac
done
for g in $groups; do kill -9 -- "-$g"; kill -9 "$g"; done 2>/dev/null
"""


class OrphanKiller:
    """One line of shell that outlives the supervisor just long enough to bury its workers, grandchildren too."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _ORPHAN_KILLER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell(self, line: str) -> None:
        assert self._shell.stdin is not None
        with contextlib.suppress(OSError):  # if the orphan_killer was killed, the death signal remains
            os.write(self._shell.stdin.fileno(), line.encode())

    def watch(self, pgid: int) -> None:
        self._tell(f"+ {pgid}\n")

    def forget(self, pgid: int) -> None:
        self._tell(f"- {pgid}\n")

    def dismiss(self) -> None:
        """Close the worker pipe; whoever is still listed is killed."""
        assert self._shell.stdin is not None
        with contextlib.suppress(OSError):
            self._shell.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._shell.wait(2.0)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spawn(message: SpawnMessage) -> BaseProcess:
    """Spawn a worker. Signals are blocked across the spawn: the child inherits the mask, the parent gets them after."""
    process = multiprocessing.get_context("spawn").Process(target=child_main, args=(message,), name=message.name)
    with _signals_blocked():
        process.start()
    assert process.pid is not None
    with contextlib.suppress(OSError):  # both sides do this: whoever comes first
        os.setpgid(process.pid, process.pid)
    return process


FDS_PER_WORKER, FDS_OF_OUR_OWN = 16, 64  # pipes of bell, queue and birth, sentinel, pidfd; files and libraries


def check_descriptors(workers: int) -> None:
    """Raise the soft limit of file descriptors to what the run needs. OSError (EMFILE), with numbers, if it cannot."""
    need = FDS_OF_OUR_OWN + FDS_PER_WORKER * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= need or soft == resource.RLIM_INFINITY:
        return
    if hard != resource.RLIM_INFINITY and hard < need:
        raise OSError(
            errno.EMFILE,
            f"{workers} workers need about {need} file descriptors, the limit is {hard}; raise it (ulimit -Hn {need}) "
            "or lower --sampling.num-samplers",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


def request_stack_dump(pid: int) -> None:
    """The stack of every thread of a worker, into its own file: faulthandler needs no interpreter for it."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGUSR2)


def kill_group(pid: int) -> None:
    """SIGKILL a worker and everything it started."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)
