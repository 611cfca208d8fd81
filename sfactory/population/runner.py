"""Run the jobs of a sweep side by side, each as a process of its own.

Every job is a `sfactory train` process, or `resume` where an earlier run was interrupted, with its output in a file.
What is known about a job is read_run from its folder, so the same command continues a sweep that was stopped:

    finished -> skipped    interrupted, killed -> resumed    failed -> reported; started again with --retry

    SWEEP/optim.lr=1e-4_s0/        a run folder, as `train` makes it
    SWEEP/{configs,logs,aside}/    settings and output of every job; folders without anything to resume
    SWEEP/sweep.json               exit codes, for jobs that failed before they had a folder
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

from sfactory.config import Config, parsing
from sfactory.config.toml_file import to_toml
from sfactory.config.values import same
from sfactory.device.machine import cores
from sfactory.errors import CommandError, Exit
from sfactory.files import replace_text
from sfactory.monitor.format import duration
from sfactory.population.jobs import Job
from sfactory.run import checkpoint
from sfactory.run.lock import lock_folder
from sfactory.run.reader import learning_settings, read_run, read_status
from sfactory.supervisor.cores import by_cores
from sfactory.supervisor.output_file import OutputFile
from sfactory.supervisor.process_signals import death_signal, exits_are_reported, signal_handlers

STOPPED = {Exit.INTERRUPTED, Exit.TERMINATED, Exit.REQUEUE}
"""Exit codes of runs that were stopped by a signal, with a checkpoint."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.1


class Action(Enum):
    """What to do about a job."""

    TRAIN = "train"
    RESUME = "resume"
    FINISHED = "finished"
    FAILED = "failed"


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create and lock the sweep's folder. Raises RunBusy (exit 3) if another sweep uses it."""
    for part in ("configs", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, _log)
    try:
        yield
    finally:
        os.close(lock)


def choose_action(job: Job, last_exit: int, retry: bool) -> tuple[Action, int]:
    """Decide what to do about a job from its folder; returns the action and the exit code of an earlier failure.

    last_exit: exit code of the job's last process, 0 if there was none. Raises CommandError if the folder holds a run
    of other settings (exit 2) or is being trained (exit 3).
    """
    code = last_exit
    has_run = (job.run_dir / "config.toml").is_file()
    if has_run:
        run = read_run(job.run_dir)
        check_same_settings(job, run.config)
        if run.state == "running":
            raise CommandError(Exit.BUSY, f"{job.run_dir} is being trained by process {run.status.get('pid')}")
        if run.state == "finished" and reached_stop(job.config, run.config, run.status):
            return Action.FINISHED, 0
        code = int(run.status.get("exit", 0)) if run.state not in ("killed", "unknown") else 0
    if code > 0 and code not in STOPPED and not retry:
        return Action.FAILED, code
    return (Action.RESUME if has_run and checkpoint.candidates(job.run_dir) else Action.TRAIN), code


def check_same_settings(job: Job, existing: Config) -> None:
    """Raise CommandError (exit 2) if the job's folder holds a run of other settings."""
    planned, found = learning_settings(job.config), learning_settings(existing)
    differ = [name for name in dict.fromkeys([*planned, *found]) if not same(planned.get(name), found.get(name))]
    if differ or job.config.run.seed != existing.run.seed or job.config.env.protocol != existing.env.protocol:
        name = parsing.flag_name(differ[0]) if differ else "run.seed or env.protocol"
        raise CommandError(Exit.USAGE, f"{job.run_dir} holds a run with another {name}; choose another --dir")


def reached_stop(wanted: Config, existing: Config, status: dict[str, Any]) -> bool:
    """Return whether a finished run is long enough for the stop rules that are wanted now."""
    return wanted.stop == existing.stop or 0 < wanted.stop.env_steps <= int(status.get("env_steps", 0))


@dataclass
class RunningJob:
    """A job whose process is running."""

    job: Job
    process: subprocess.Popen[bytes]
    started_at: float
    output: OutputFile
    """In lockstep also what environments print."""

    def send(self, number: int) -> None:
        """Send a signal to the job's process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class Sweep:
    """The jobs of one command, at most `max_running` at a time.

    Consumes: the plan, run folders, sweep.json. Produces: processes, settings files, sweep.json, one line per job on
    stderr. Waits for: its processes, polled every POLL_S seconds, and signals.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], max_running: int, retry: bool) -> None:
        self.folder, self.jobs, self.max_running, self.retry = folder, jobs, max_running, retry
        self.exits = _read_exits(folder)
        """Job name -> [exit code, last line of its output]."""
        self.queue: list[tuple[Job, Action]] = []
        self.running: list[RunningJob] = []
        self.failed: list[tuple[str, int]] = []
        self.stopped_code = 0
        """Exit code of a job that was stopped by a signal of its own."""
        self.num_finished = 0
        self.durations_s: list[float] = []
        self.signal, self.num_signals = 0, 0

    def run(self) -> tuple[Exit, str]:
        """Run all jobs; returns the sweep's exit code and one sentence."""
        for job in self.jobs:
            self._enqueue(job)
        already = f"; {self.num_finished} finished before" if self.num_finished else ""
        _log(f"{len(self.jobs)} runs in {self.folder}{already}")
        forwarded = 0
        with signal_handlers(STOP_SIGNALS, self._note_signal), exits_are_reported():
            while self.running or (self.queue and not self.num_signals):
                while self.queue and len(self.running) < self.max_running and not self.num_signals:
                    self._start(*self.queue.pop(0))
                if self.num_signals > forwarded:
                    forwarded = self.num_signals
                    self._forward(self.signal if self.num_signals == 1 else signal.SIGKILL)
                for one in self.running:
                    one.output.trim()
                for finished in [one for one in self.running if one.process.poll() is not None]:
                    self.running.remove(finished)
                    self._record(finished)
                time.sleep(POLL_S)
        return self._result()

    def _result(self) -> tuple[Exit, str]:
        count = f"{self.num_finished} of {len(self.jobs)} runs finished"
        if self.num_signals:
            code = Exit.INTERRUPTED if self.signal == signal.SIGINT else Exit.TERMINATED
            return code, f"{count}; repeat the command to continue"
        if self.failed:
            names = ", ".join(f"{name} (exit {code})" for name, code in self.failed)
            hint = "" if self.retry else "; --retry starts them again"
            return _as_exit(self.failed[0][1]), f"{count}; failed: {names}{hint}; output in {self.folder / 'logs'}"
        if self.stopped_code:
            return _as_exit(self.stopped_code), f"{count}; others were stopped; repeat the command to continue"
        return Exit.FINISHED, count

    def _enqueue(self, job: Job) -> None:
        """Queue a job, or count it as finished or failed."""
        action, code = choose_action(job, int(self.exits.get(job.name, [0])[0]), self.retry)
        if action is Action.FINISHED:
            self.num_finished += 1
        elif action is Action.FAILED:
            _log(f"{job.name}  failed before (exit {code}); --retry starts it again")
            self.failed.append((job.name, code))
        else:
            self.queue.append((job, action))

    def _start(self, job: Job, action: Action) -> None:
        """Start the process of a job, in a session of its own: a Ctrl-C of the terminal is forwarded once, by us.

        Jobs that run side by side share the cores. A resumed job keeps the processes it was started with.
        """
        file = self.folder / "configs" / f"{job.name}.toml"
        share = max(1, cores() // min(self.max_running, len(self.jobs)))
        replace_text(file, to_toml(job.config if action is Action.RESUME else by_cores(job.config, share)))
        if action is Action.TRAIN and job.run_dir.exists():
            _move_aside(job.run_dir)
        arguments = ["resume", str(job.run_dir)] if action is Action.RESUME else ["train"]
        output = OutputFile(self.folder / "logs" / f"{job.name}.txt")
        with output.path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sfactory", *arguments, "--config", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=death_signal(signal.SIGTERM),
            )
        self.running.append(RunningJob(job, process, time.monotonic(), output))

    def _record(self, finished: RunningJob) -> None:
        """Write the exit code of a job whose process exited, and log one line."""
        name, code, seconds = (
            finished.job.name,
            int(finished.process.returncode),
            time.monotonic() - finished.started_at,
        )
        last_line = finished.output.last_line().removeprefix("sfactory: ")[:300]
        self.exits[name] = [code, last_line]
        replace_text(self.folder / "sweep.json", json.dumps(self.exits, indent=1) + "\n")
        status = read_status(finished.job.run_dir)
        steps = int(status.get("env_steps", 0))
        if code == Exit.FINISHED:
            self.num_finished += 1
            self.durations_s.append(seconds)
            result = f"finished  {steps:,} steps in {duration(seconds)}"
            score = status.get("training_return")
            result += f", return {score:.4g}" if isinstance(score, int | float) else ""
        elif code in STOPPED or (self.num_signals and code < 0):
            self.stopped_code = code
            result = f"stopped at {steps:,} steps"
        else:
            self.failed.append((name, code))
            result = f"FAILED  {last_line or f'killed by signal {-code}'}"
        _log(f"[{self.num_finished}/{len(self.jobs)}] {name}  {result}{self._time_left()}")

    def _time_left(self) -> str:
        """Estimate the remaining time from the mean duration of the jobs so far."""
        left = len(self.queue) + len(self.running)
        if not left or not self.durations_s or self.num_signals:
            return ""
        mean = sum(self.durations_s) / len(self.durations_s)
        return f"; about {duration(mean * left / self.max_running)} left"

    def _forward(self, number: int) -> None:
        """Forward the first signal, on which jobs save and exit; from the second on, kill them."""
        _log(f"{'killing' if number == signal.SIGKILL else 'saving and stopping'} {len(self.running)} runs")
        for one in self.running:
            one.send(number)

    def _note_signal(self, number: int, _: FrameType | None) -> None:
        self.signal, self.num_signals = self.signal or number, self.num_signals + 1


def _read_exits(folder: Path) -> dict[str, list[Any]]:
    with contextlib.suppress(OSError, ValueError):
        exits = json.loads((folder / "sweep.json").read_text())
        return exits if isinstance(exits, dict) else {}
    return {}


def _move_aside(run_dir: Path) -> None:
    """Move a folder without anything to resume to SWEEP/aside."""
    aside = run_dir.parent / "aside"
    aside.mkdir(exist_ok=True)
    number = next(n for n in itertools.count(1) if not (aside / f"{run_dir.name}-{n}").exists())
    run_dir.rename(aside / f"{run_dir.name}-{number}")


def _as_exit(code: int) -> Exit:
    """Return the exit code of a job as an Exit; WORKER_LOST for a process that was killed."""
    with contextlib.suppress(ValueError):
        return Exit(code)
    return Exit.WORKER_LOST


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
