"""Small processes that end what worker processes leave behind. Standard library only; this file is run as a script.

    reaper.py worker PARENT CODE MARK OUTPUT [NAME=VALUE ...] -- COMMAND    one per worker
    reaper.py orphans MARK                                                  one per run

`worker` starts COMMAND as its child, with the variables set and both outputs in the file OUTPUT (- is stderr). It is a
subreaper: whatever the command starts becomes its child when the command exits, also in sessions of their own. It then
ends all of them, writes the exit code to the pipe CODE and exits as the command did. On STOP, and when the process
PARENT has exited, it kills the command first. A command that does not end then (it waits inside the system, as for a
network file system that does not answer) is left: it runs no code of its own any more. The exit is that of SIGKILL.

`orphans` reads lines "+ PID" and "- PID" of such processes from its stdin. At the end of file (the supervisor is gone)
it stops the listed ones, and kills every process that has MARK in its environment. This finds what is left if a
`worker` process was killed itself, unless the environment was replaced.

Interrupts, SIGTERM and SIGHUP are ignored in both: a scheduler sends them to all processes of a job, and the run has to
end in order.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

MARK = "SFACTORY_WORKER"
"""Environment variable of every process below a worker: RUN/WORKER/GENERATION/."""
STOP = getattr(signal, "SIGRTMIN", signal.SIGQUIT)
"""Signal that makes a `worker` process kill its command. One that no scheduler sends."""
ORPHANED = STOP + 1 if hasattr(signal, "SIGRTMIN") else STOP
"""Signal that a `worker` process gets from the kernel when PARENT exits."""
STACKS = signal.SIGUSR2
"""Signal that a `worker` process passes on to its command."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ORPHANED_S = 0.1  # after the supervisor's death: a scheduler that kills all processes by their ids still finds them
TERMINATE_S = 0.3  # after SIGTERM, before SIGKILL
GIVE_UP_S = 5.0  # for processes that cannot be killed
REAPERS_S = 0.6  # for the `worker` processes, once the supervisor is gone
POLL_S = 0.01

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


# -- one worker ----------------------------------------------------------------------------------------------------


def run_below(
    parent: int, code_pipe: int, mark: str, output: str, variables: Sequence[str], command: Sequence[str]
) -> None:
    """Run a command as a child of this process; end everything that it leaves, and exit as it did."""
    reaper, waited_for = os.getpid(), {signal.SIGCHLD, STOP, ORPHANED, STACKS}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an inherited SIG_IGN would hide the exit of the command
    signal.pthread_sigmask(signal.SIG_BLOCK, {*waited_for, *IGNORED})
    prctl(_PR_SET_PDEATHSIG, ORPHANED)
    if os.getppid() != parent:  # it exited before the signal was requested
        os._exit(1)
    subreaper = prctl(_PR_SET_CHILD_SUBREAPER, 1)
    os.setpgid(0, 0)
    child = os.fork()
    if child == 0:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != reaper:
            os._exit(1)
        os.close(code_pipe)
        _execute(mark, output, variables, command)
    _release_files(code_pipe)
    status = _wait_for(child, waited_for)
    if not subreaper:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
    _end_children()
    _exit_like(status, code_pipe)


def _execute(mark: str, output: str, variables: Sequence[str], command: Sequence[str]) -> None:
    """Replace this process by the command. IGNORED stay blocked until the command has handlers for them."""
    os.setpgid(0, 0)
    signal.signal(STACKS, signal.SIG_IGN)  # until the command has a handler
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, STOP, ORPHANED, STACKS})
    _redirect(os.open(os.devnull, os.O_RDONLY), 0)
    if output == "-":
        os.dup2(2, 1)
    else:
        try:
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        except OSError:  # the folder was removed, the disk is full, or the file is a link
            file = os.open(os.devnull, os.O_WRONLY)
        os.dup2(file, 1)
        _redirect(file, 2)
    for variable in (f"{MARK}={mark}", *variables):
        name, _, value = variable.partition("=")
        os.environ[name] = value
    os.execv(command[0], list(command))


def _redirect(file: int, target: int) -> None:
    os.dup2(file, target)
    if file != target:
        os.close(file)


def _release_files(kept: int) -> None:
    """Close all files but one: they belong to the command, and a pipe must end with it."""
    os.chdir("/")
    for target in (0, 1, 2):
        _redirect(os.open(os.devnull, os.O_RDWR), target)
    try:
        files = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        files = list(range(4096))
    for file in files:
        if file > 2 and file != kept:
            with contextlib.suppress(OSError):
                os.close(file)


def _wait_for(child: int, waited_for: Iterable[int]) -> int:
    """Act on signals until the child has exited; return its status. Collects all other children that exit.

    The status is that of SIGKILL if the child has not exited GIVE_UP_S after it was killed.
    """
    give_up = math.inf
    while True:
        with contextlib.suppress(ChildProcessError):
            for pid, status in _exited():
                if pid == child:
                    return status
        if (left := give_up - time.monotonic()) <= 0:
            return signal.SIGKILL
        number = _next_signal(waited_for, left)
        if number == ORPHANED:
            time.sleep(ORPHANED_S)
        if number == STACKS:
            kill([child], STACKS)
        elif number not in (0, signal.SIGCHLD):
            kill([child], signal.SIGKILL)
            give_up = min(give_up, time.monotonic() + GIVE_UP_S)


def _next_signal(waited_for: Iterable[int], seconds: float) -> int:
    """Wait for one of the signals; 0 if none has arrived within these seconds, where the system can tell."""
    if seconds == math.inf or not hasattr(signal, "sigtimedwait"):
        return signal.sigwait(waited_for)
    info = signal.sigtimedwait(waited_for, seconds)
    return 0 if info is None else info.si_signo


def _exited() -> Iterator[tuple[int, int]]:
    """Collect children that have exited: (pid, status). ChildProcessError if there are none at all."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        yield pid, status


def _end_children() -> None:
    """End all children, and their children, which become ours when their parents exit. SIGTERM first.

    What cannot be killed is left after GIVE_UP_S.
    """
    begun, terminated = time.monotonic(), set[int]()
    with contextlib.suppress(ChildProcessError):  # raised as soon as none is left
        while (waited := time.monotonic() - begun) < GIVE_UP_S:
            for _ in _exited():
                pass
            children = set(children_of(os.getpid()))
            if waited < TERMINATE_S:
                kill(children - terminated, signal.SIGTERM)
                terminated |= children
            else:
                kill(children, signal.SIGKILL)
            time.sleep(POLL_S)


def _exit_like(status: int, code_pipe: int) -> None:
    """Exit with the same status, and report it."""
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):  # PARENT may be gone
        os.write(code_pipe, str(code).encode())
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code)


# -- one run -------------------------------------------------------------------------------------------------------


def end_orphans(mark: str) -> None:
    """Wait until the supervisor is gone, then end all processes of its workers."""
    for number in (*IGNORED, STACKS):
        signal.signal(number, signal.SIG_IGN)
    reapers: set[int] = set()
    for line in sys.stdin:
        add, pid = line.split()
        (reapers.add if add == "+" else reapers.discard)(int(pid))
    time.sleep(ORPHANED_S if reapers else 0)
    kill(reapers, STOP)
    kill(reapers, signal.SIGCONT)  # they may have been stopped
    begun = time.monotonic()
    while (waited := time.monotonic() - begun) < GIVE_UP_S:
        left = [*marked(mark), *(pid for pid in reapers if not has_proc() and _runs(pid))]
        if not left:
            return
        if waited > REAPERS_S:
            kill(left, signal.SIGKILL)
        time.sleep(5 * POLL_S)


def end_marked(mark: str) -> list[int]:
    """Kill every process with this mark, and return those that are left after GIVE_UP_S.

    What they start in the meantime has the mark too.
    """
    begun = time.monotonic()
    while (left := marked(mark)) and time.monotonic() - begun < GIVE_UP_S:
        kill(left, signal.SIGKILL)
        time.sleep(POLL_S)
    return left


# -- processes -----------------------------------------------------------------------------------------------------


def prctl(option: int, value: int) -> bool:
    """Call prctl; False where it fails or does not exist."""
    return sys.platform == "linux" and ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0) == 0


def has_proc() -> bool:
    return os.path.exists("/proc/self/stat")


def kill(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes that may be gone."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def children_of(parent: int) -> list[int]:
    """Ids of the processes whose parent is `parent`, which has one thread; empty where there is no /proc."""
    try:
        with open(f"/proc/{parent}/task/{parent}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # a kernel without that file
        return [pid for pid, words in _stats() if int(words[1]) == parent]


def marked(mark: str) -> list[int]:
    """Ids of all other running processes with this mark in their environment or command line."""
    found, own, wanted = [], os.getpid(), mark.encode()
    for pid, words in _stats():
        if pid != own and words[0] not in "ZX":
            for file in ("environ", "cmdline"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}", "rb") as text:  # of another user
                    if wanted in text.read():
                        found.append(pid)
                        break
    return found


def _stats() -> Iterator[tuple[int, list[str]]]:
    """(pid, [state, parent, ...]) of all processes. The name before the state may contain any character."""
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
                yield int(name), file.read().rpartition(")")[2].split()


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return True
    return False


def main(words: Sequence[str]) -> None:
    """Run as described at the top of this file."""
    if words[0] == "orphans":
        end_orphans(words[1])
    else:
        parent, code_pipe, mark, output, *rest = words[1:]
        end = rest.index("--")
        run_below(int(parent), int(code_pipe), mark, output, rest[:end], rest[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
