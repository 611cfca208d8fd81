"""Do a job with environments in a process of its own.

Environments run code that is not ours: it may print, change the working directory or signal handlers, call `sys.exit`,
crash, hang, or leave processes behind. None of this reaches the process that asks for the job: the child has time
limits, its output goes to stderr, and its reaper ends what it leaves.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from sfactory.config.schema import Env
from sfactory.envs import EnvError
from sfactory.errors import UNGUARDED
from sfactory.shm.arena import Arena
from sfactory.supervisor import reaper
from sfactory.supervisor.blas_threads import one_thread
from sfactory.supervisor.child_main import SpawnMessage
from sfactory.supervisor.env_child import CLOCK, FAILED, ClockWord, Doing, EnvChild, Job
from sfactory.supervisor.main_script import MISSING_MAIN_FILE, UnguardedError, refuse_worker
from sfactory.supervisor.process_signals import exits_are_reported
from sfactory.supervisor.spawn import STDERR, spawn
from sfactory.supervisor.ticks import STACK_DUMP_S, Ticks
from sfactory.workers.names import ENVIRONMENTS

START_S = 300.0  # for the interpreter and the imports of the user's script, and for what is no environment's code
POLL_S = 0.05


def run_env_task(job: Job, env: Env, single_threaded: bool = True, what: str = "") -> Any:
    """Return the result of a job, which runs in a child of this process.

    env: its time limits apply. single_threaded: linear algebra has one thread. what: what is called, for messages; by
    default the environments.
    Raises what the job raises; EnvError (exit 6) if its process ends, crashes or hangs; UnguardedError.
    """
    refuse_worker()
    what = what or ", ".join(env.tasks)
    with exits_are_reported(), MISSING_MAIN_FILE:
        arena = Arena.create(CLOCK)
        receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
        try:
            variables = one_thread(os.environ) if single_threaded else {}
            message = SpawnMessage(ENVIRONMENTS, (arena.fd,), EnvChild(job, what, sender))
            process = spawn(message, secrets.token_hex(8), STDERR, variables)
            sender.close()
            try:
                result = Wait(receiver, process, arena, env, what).result()
            finally:  # also after Ctrl-C
                _end(process)
        finally:
            sender.close()
            receiver.close()
            arena.close()
    if isinstance(result, Exception):
        raise result
    return result


def _end(process: BaseProcess) -> None:
    """End the child and all that it started."""
    if process.exitcode is None:
        assert process.pid is not None
        reaper.kill([process.pid], reaper.STOP)
        reaper.kill([process.pid], signal.SIGCONT)  # it may have been stopped
        process.join(reaper.GIVE_UP_S)


class Wait:
    """Waits for the result of a child, as long as it keeps its time limits."""

    def __init__(self, receiver: Connection, process: BaseProcess, arena: Arena, env: Env, what: str) -> None:
        self.receiver, self.process, self.env, self.what = receiver, process, env, what
        self._words = arena["clock"]
        self._seen = ClockWord.read(self._words)
        self._clock = self._changed_at = 0.0  # seconds that this process could run
        self._ticks = Ticks()

    def result(self) -> Any:
        """What the child sends; an EnvError if it sends nothing. Raises UnguardedError."""
        is_open = True
        while True:
            code = self.process.exitcode  # before the pipe is read: what was sent before the exit is found
            if is_open and self.receiver.poll(POLL_S):
                try:
                    return self.receiver.recv()
                except Exception:  # the end of the pipe, or the child ended within its message
                    is_open = False
            elif code is not None:
                return self._ended(code)
            elif not is_open:
                self.process.join(POLL_S)
            self._tick()
            if late := self._late():
                self._dump_stacks()
                return EnvError(f"{self.what} {late}", fault=True)

    def _tick(self) -> None:
        self._clock += self._ticks.passed()
        word = ClockWord.read(self._words)
        if word != self._seen:
            self._seen, self._changed_at = word, self._clock

    def _late(self) -> str:
        """The time limit that was exceeded, in words; empty if none was."""
        _, environments, doing = self._seen
        waited = self._clock - self._changed_at
        if doing in (Doing.START, Doing.OWN) and waited > START_S:
            return f"{FAILED[doing]}: its process did not get on within {START_S:g} s"
        limits = {Doing.BUILD: self.env.build_timeout, Doing.STEP: self.env.step_timeout}
        if doing not in limits or waited <= environments * limits[doing]:
            return ""
        time_limit = f"{f'{environments} x ' if environments > 1 else ''}{limits[doing]:g} s"
        if doing is Doing.BUILD:
            return f"could not be built, reset and closed within {time_limit} (env.build-timeout)"
        return f"did not return from a step within {time_limit} (env.step-timeout)"

    def _ended(self, code: int) -> EnvError:
        if code == UNGUARDED:
            raise UnguardedError
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        doing = ClockWord.read(self._words).doing
        return EnvError(f"{self.what} {FAILED[doing]}: it ended its process ({cause})", fault=True)

    def _dump_stacks(self) -> None:
        """Have the child write the stacks of its threads to stderr, also while it holds the interpreter lock."""
        assert self.process.pid is not None
        reaper.kill([self.process.pid], reaper.STACKS)
        time.sleep(STACK_DUMP_S)
