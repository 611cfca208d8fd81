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

# Reads lines "+ PGID" and "- PGID" from its stdin; at the end of file (the supervisor is gone) kills the listed groups.
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
    """A shell process that outlives the supervisor and kills the remaining worker groups, their children included."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _ORPHAN_KILLER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _write(self, line: str) -> None:
        assert self._shell.stdin is not None
        with contextlib.suppress(OSError):  # if the shell was killed, PDEATHSIG still ends the workers
            os.write(self._shell.stdin.fileno(), line.encode())

    def watch(self, pgid: int) -> None:
        """Add a worker's process group."""
        self._write(f"+ {pgid}\n")

    def forget(self, pgid: int) -> None:
        """Remove the process group of a worker that is reaped."""
        self._write(f"- {pgid}\n")

    def close(self) -> None:
        """End the shell; it kills the groups that are still listed."""
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
    """Spawn a worker process.

    Signals are blocked meanwhile: the child inherits the mask, and the parent receives them afterwards.
    """
    process = multiprocessing.get_context("spawn").Process(target=child_main, args=(message,), name=message.name)
    with _signals_blocked():
        process.start()
    assert process.pid is not None
    with contextlib.suppress(OSError):  # parent and child both do this, so it is done before either continues
        os.setpgid(process.pid, process.pid)
    return process


FDS_PER_WORKER, FDS_OF_OUR_OWN = 16, 64
"""File descriptors: pipes of doorbell, queue and spawn, sentinel and pidfd per worker; files and libraries."""


def check_descriptors(workers: int) -> None:
    """Raise the soft limit of file descriptors to the number the run needs. OSError (EMFILE) if it cannot."""
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
    """Have a worker write the stacks of its threads into its output file; works while it holds the interpreter lock."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGUSR2)


def kill_group(pid: int) -> None:
    """SIGKILL a worker and all its children."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)
