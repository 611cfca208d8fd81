"""A spawned process that is started below a process of `reaper.py`.

The interpreter of `multiprocessing` starts as usual, but as a child of a small process that was started in its place:
`pid` and `exitcode` are those of the small process, which ends what the interpreter leaves and exits as it did. The
environment of the interpreter is complete before it starts, and that of this process is not changed.

The exit code also arrives through a pipe. It is read where the system does not report it: SIGCHLD is ignored, or the
program that trains waits for all children itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from multiprocessing.process import BaseProcess
from typing import Any

from sfactory.supervisor import reaper


class _ReapedPopen(popen_spawn_posix.Popen):
    def _launch(self, process_obj: Any) -> None:
        """As the base class does, but with another command line."""
        tracker_fd = resource_tracker.getfd()
        assert tracker_fd is not None
        self._fds: list[int] = [*self._fds, tracker_fd]
        message = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(_preparation_data(process_obj.name), message)
            reduction.dump(process_obj, message)
        finally:
            context.set_spawning_popen(None)
        parent_r, child_w = os.pipe()
        child_r, parent_w = os.pipe()
        self._code, code_w = os.pipe()
        ours = parent_r, parent_w, self._code
        self.finalizer = util.Finalize(self, util.close_fds, ours)  # type: ignore[attr-defined]
        try:
            self._fds += [child_r, child_w, code_w]
            command = spawn.get_command_line(tracker_fd=tracker_fd, pipe_handle=child_r)
            words = [*reaper_command(), "worker", str(os.getpid()), str(code_w), *process_obj.reaper_words]
            words += ["--", *command]
            self.pid = start_reaper(words, self._fds)
            self.sentinel = parent_r
            with open(parent_w, "wb", closefd=False) as file:
                file.write(message.getbuffer())
        finally:
            for fd in (child_r, child_w, code_w):
                os.close(fd)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code; None while the process runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, flag)
            except ChildProcessError:  # it has exited, and the system gave its status away
                self.returncode = self._code_from_pipe()
            else:
                if pid == self.pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _code_from_pipe(self) -> int:
        """What the small process wrote at its end; nothing if it was killed itself."""
        with contextlib.suppress(ValueError):
            return int(os.read(self._code, 16))
        return -signal.SIGKILL


def _preparation_data(name: str) -> dict[str, Any]:
    """As `spawn.get_preparation_data`; a child begins in / if the current folder was removed in the meantime."""
    try:
        return spawn.get_preparation_data(name)
    except FileNotFoundError:
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chdir("/")
            return spawn.get_preparation_data(name)
        finally:
            os.fchdir(here)
            os.close(here)


class ReapedProcess(context.SpawnProcess):
    """See the top of this file."""

    def __init__(self, reaper_words: list[str], **arguments: Any) -> None:
        """reaper_words: mark, output and variables of `reaper.py worker`. arguments: those of a Process."""
        super().__init__(**arguments)
        self.reaper_words = reaper_words

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        return _ReapedPopen(process_obj)


def start_reaper(words: list[str], fds: list[int]) -> int:
    """Start the command line of a reaper, which inherits the descriptors `fds`; return its process id."""
    pid: int = util.spawnv_passfds(os.fsencode(words[0]), words, fds)
    return pid


def reaper_command() -> list[str]:
    """The start of a command line of `reaper.py`. Isolated and without site-packages: it starts in 15 ms."""
    return [os.fsdecode(spawn.get_executable()), "-I", "-S", reaper.__file__]
