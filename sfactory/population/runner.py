"""Run the jobs of a sweep side by side, each as a process of its own.

Every job is a `sfactory train` process, or `resume` where an earlier run was interrupted, with its output in a file.
What is known about a job is read from its folder, so the same command continues a sweep that was stopped:

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
import sys
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from sfactory.config import Config, parsing, with_settings
from sfactory.config.toml_file import to_toml
from sfactory.config.values import same
from sfactory.errors import CommandError, Exit, RunBusy
from sfactory.files import replace_text
from sfactory.monitor.format import duration
from sfactory.population.commands import Command, Launcher, Resources
from sfactory.population.jobs import Job
from sfactory.population.side_by_side import STOPPED, LostJobs, Running, SideBySide, log
from sfactory.run import checkpoint
from sfactory.run.lock import lock_folder
from sfactory.run.reader import learning_settings, read_run, read_status
from sfactory.supervisor.cores import by_cores
from sfactory.supervisor.output_file import OutputFile

CLUSTER_STOPS = (Exit.REQUEUE, Exit.TERMINATED)
"""Exit codes of a run that a cluster stopped: before its time limit, or for another job."""
MOST_LOST = 3
"""Times in a row that a run is started again after its machine was lost before it got anywhere."""


class Action(Enum):
    """What to do about a job."""

    TRAIN = "train"
    RESUME = "resume"
    FINISHED = "finished"
    FAILED = "failed"


class Step(NamedTuple):
    """A job with what is to be done about it."""

    job: Job
    action: Action


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create and lock the folder of several runs. Raises RunBusy (exit 3) if another command uses it."""
    for part in ("configs", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, log)
    try:
        yield
    finally:
        os.close(lock)


def is_free(run_dir: Path) -> bool:
    """Whether no process trains in a folder; a run whose starter was killed still saves for a moment."""
    if not run_dir.is_dir():
        return True
    try:
        os.close(lock_folder(run_dir, lambda line: None))
    except RunBusy:
        return False
    return True


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


class Sweep:
    """The jobs of one command, at most `max_running` at a time.

    Consumes: the plan, run folders, sweep.json. Produces: commands, settings files, sweep.json, one line per job on
    stderr. Waits for: what `SideBySide` waits for.
    """

    def __init__(
        self,
        folder: Path,
        jobs: Sequence[Job],
        max_running: int,
        retry: bool,
        launcher: Launcher,
        resources: Resources,
    ) -> None:
        self.folder, self.jobs, self.retry = folder, jobs, retry
        self.launcher, self.resources = launcher, resources
        self.exits = _read_exits(folder)
        """Job name -> [exit code, last line of its output]."""
        self.processes = SideBySide[Step](max_running, self._start, self._record, self._ready)
        self.failed: list[tuple[str, int]] = []
        self.stopped_code = 0
        """Exit code of a job that was stopped by a signal of its own."""
        self.num_finished = 0
        self.durations_s: list[float] = []
        self.lost = LostJobs(MOST_LOST)
        """Jobs by name that the scheduler stopped, or whose machine was lost."""

    def run(self) -> tuple[Exit, str]:
        """Run all jobs; returns the sweep's exit code and one sentence."""
        for job in self.jobs:
            self._enqueue(job)
        already = f"; {self.num_finished} finished before" if self.num_finished else ""
        log(f"{len(self.jobs)} runs in {self.folder}{already}")
        self.processes.run()
        return self._result()

    def _result(self) -> tuple[Exit, str]:
        count = f"{self.num_finished} of {len(self.jobs)} runs finished"
        if self.processes.num_signals:
            return self.processes.stop_code, f"{count}; repeat the command to continue"
        if self.failed:
            names = ", ".join(f"{name} (exit {code})" for name, code in self.failed)
            hint = "" if self.retry else "; --retry starts them again"
            return as_exit(self.failed[0][1]), f"{count}; failed: {names}{hint}; output in {self.folder / 'logs'}"
        if self.stopped_code:
            return as_exit(self.stopped_code), f"{count}; others were stopped; repeat the command to continue"
        return Exit.FINISHED, count

    def _enqueue(self, job: Job) -> None:
        """Queue a job, or count it as finished or failed."""
        action, code = choose_action(job, int(self.exits.get(job.name, [0])[0]), self.retry)
        if action is Action.FINISHED:
            self.num_finished += 1
        elif action is Action.FAILED:
            log(f"{job.name}  failed before (exit {code}); --retry starts it again")
            self.failed.append((job.name, code))
        else:
            self.processes.queue.append(Step(job, action))

    def _ready(self, step: Step) -> bool:
        return step.job.name not in self.lost or is_free(step.job.run_dir)

    def _start(self, step: Step) -> Running[Step]:
        """Submit a job. Jobs that run side by side share the cores; a resumed job keeps its number of processes."""
        job, action = step
        if job.name in self.lost:  # it may have saved since
            action = Action.RESUME if checkpoint.candidates(job.run_dir) else Action.TRAIN
        settings = job.config if action is Action.RESUME else by_cores(job.config, self.resources.cores)
        if self.launcher.reruns:  # a signal before the time limit ends the run with 75, and it is started again
            settings = with_settings(settings, {"run.requeue": True})
        if action is Action.TRAIN and job.run_dir.exists():
            move_aside(job.run_dir)
        command = run_command(self.folder, job.name, job.run_dir if action is Action.RESUME else None, settings)
        output = OutputFile(command.output)
        return Running(step, self.launcher.submit(command, self.resources), time.monotonic(), output)

    def _record(self, ended: Running[Step], code: int) -> None:
        """Write the exit code of a job that has ended, and log one line."""
        job, last_line = ended.job.job, ended.last_line()
        name, signalled = job.name, self.processes.num_signals
        self.exits[name] = [code, last_line]
        replace_text(self.folder / "sweep.json", json.dumps(self.exits, indent=1) + "\n")
        status = read_status(job.run_dir)
        steps = int(status.get("env_steps", 0))
        if code == Exit.FINISHED:
            self.num_finished += 1
            self.durations_s.append(ended.seconds)
            result = f"finished  {steps:,} steps in {duration(ended.seconds)}"
            score = status.get("training_return")
            result += f", return {score:.4g}" if isinstance(score, int | float) else ""
        elif not signalled and self._starts_again(name, code, steps):
            self.processes.queue.append(ended.job)
            what = "stopped by the scheduler" if code in CLUSTER_STOPS else "lost"
            result = f"{what} at {steps:,} steps; it is started again"
        elif code in STOPPED or (signalled and code < 0):
            self.stopped_code = code
            result = f"stopped at {steps:,} steps"
        else:
            self.failed.append((name, code))
            result = f"FAILED  {last_line or f'killed by signal {-code}'}"
        log(f"[{self.num_finished}/{len(self.jobs)}] {name}  {result}{self._time_left()}")

    def _starts_again(self, name: str, code: int, steps: int) -> bool:
        """Whether a job goes on at once: the scheduler stopped it, or its machine was lost."""
        stopped = code in CLUSTER_STOPS or code < 0
        return self.launcher.reruns and stopped and self.lost.starts_again(name, code, steps)

    def _time_left(self) -> str:
        """Estimate the remaining time from the mean duration of the jobs so far."""
        left = len(self.processes.queue) + len(self.processes.running)
        if not left or not self.durations_s or self.processes.num_signals:
            return ""
        mean = sum(self.durations_s) / len(self.durations_s)
        return f"; about {duration(mean * left / self.processes.max_running)} left"


def run_command(folder: Path, name: str, resumed: Path | None, config: Config) -> Command:
    """Write the settings of a run and return the command that trains it. resumed: its folder if it is continued."""
    file = folder / "configs" / f"{name}.toml"
    replace_text(file, to_toml(config))
    arguments = ["train"] if resumed is None else ["resume", str(resumed)]
    words = [sys.executable, "-m", "sfactory", *arguments, "--config", str(file)]
    return Command(name, words, folder / "logs" / f"{name}.txt")


def _read_exits(folder: Path) -> dict[str, list[Any]]:
    with contextlib.suppress(OSError, ValueError):
        exits = json.loads((folder / "sweep.json").read_text())
        return exits if isinstance(exits, dict) else {}
    return {}


def move_aside(run_dir: Path) -> None:
    """Move a folder without anything to resume to `aside/` beside it."""
    aside = run_dir.parent / "aside"
    aside.mkdir(exist_ok=True)
    number = next(n for n in itertools.count(1) if not (aside / f"{run_dir.name}-{n}").exists())
    run_dir.rename(aside / f"{run_dir.name}-{number}")


def as_exit(code: int) -> Exit:
    """Return the exit code of a job as an Exit; WORKER_LOST for a process that was killed."""
    with contextlib.suppress(ValueError):
        return Exit(code)
    return Exit.WORKER_LOST
