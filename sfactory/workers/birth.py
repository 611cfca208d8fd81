"""How a worker comes into the world and how it is seen to leave it.

Born with signals blocked, arms its death signal before any heavy import, then builds itself. Its stdout and stderr are
a file of its own in the run's debug folder: workers never write to the terminal, and last words need no queue.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # the supervisor's business alone
ENVIRONMENT_FAULT = 6  # exit code of a sampler whose environments cannot be built
REFUSED = 4  # exit code of a learner that was given a checkpoint it cannot begin with
_PR_SET_PDEATHSIG = 1

# Reads "+ PGID" and "- PGID" lines from the life pipe; at its end (the supervisor is gone) kills what is listed.
_UNDERTAKER = """
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


class Undertaker:
    """One line of shell that outlives the supervisor just long enough to bury its workers, grandchildren too."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _UNDERTAKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _tell(self, line: str) -> None:
        assert self._shell.stdin is not None
        with contextlib.suppress(OSError):  # if the undertaker was killed, the death signal remains
            os.write(self._shell.stdin.fileno(), line.encode())

    def watch(self, pgid: int) -> None:
        self._tell(f"+ {pgid}\n")

    def forget(self, pgid: int) -> None:
        self._tell(f"- {pgid}\n")

    def dismiss(self) -> None:
        """Close the life pipe; whoever is still listed is killed."""
        assert self._shell.stdin is not None
        with contextlib.suppress(OSError):
            self._shell.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._shell.wait(2.0)


class Birth:
    """The birth message: unpickled in two steps, so that nothing heavy is imported before the child is armed."""

    def __init__(self, name: str, parent: int, fds: tuple[int, ...], last_words: str, payload: Any) -> None:
        self.name, self.parent, self.fds, self.last_words, self.payload = name, parent, fds, last_words, payload

    def __getstate__(self) -> tuple[Any, ...]:
        payload = bytes(ForkingPickler.dumps(self.payload))
        return self.name, self.parent, [DupFd(fd) for fd in self.fds], self.last_words, payload

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name, self.parent, handles, self.last_words, self.payload = state
        self.fds = tuple(handle.detach() for handle in handles)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the death signal was armed
        os._exit(1)


def live(birth: Birth) -> None:
    """First function of every child process."""
    _die_with(birth.parent)
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    words = os.open(birth.last_words, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
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
        from sfactory.workers.roles import play  # imports what the role needs

        code = play(birth.name, birth.fds, ForkingPickler.loads(birth.payload))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing that hangs in an atexit handler of an environment may keep us


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def give_birth(birth: Birth) -> BaseProcess:
    """Spawn a worker. Signals are blocked across the spawn: the child inherits the mask, the parent gets them after."""
    process = multiprocessing.get_context("spawn").Process(target=live, args=(birth,), name=birth.name)
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


def ask_for_stack(pid: int) -> None:
    """The stack of every thread of a worker, into its own file: faulthandler needs no interpreter for it."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGUSR2)


def kill_group(pid: int) -> None:
    """SIGKILL a worker and everything it started."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)
