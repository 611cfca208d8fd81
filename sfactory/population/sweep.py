"""The verb sweep: one run per seed and cell of a grid, side by side, and a table at the end.

Every run is a process of its own (`sfactory train`, or `resume` where it was interrupted) in a group of its own, with
its output in a file. What is known about a run lies in its folder, so the same command goes on where it stopped:

    finished -> left alone    interrupted, killed -> resumed    failed -> named; tried again with --retry

    SWEEP/optim.lr=1e-4_s0/        a run folder, as `train` makes it
    SWEEP/{configs,logs,aside}/    settings and output of every run; folders that held nothing to resume
    SWEEP/sweep.json               exit codes, for runs that failed before they had a folder
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sfactory.config import Config, parsing, presets
from sfactory.config.parsing import ConfigLayer, RawValue, SettingError
from sfactory.config.renamed import current_name, original_name
from sfactory.config.toml_file import to_toml
from sfactory.errors import CommandError, Exit
from sfactory.monitor.metrics import duration
from sfactory.monitor.writers import write_atomically
from sfactory.run import checkpoint
from sfactory.run.reader import flat, named, read, read_status, relevant

OWN = {"run.seed": "--seeds", "run.dir": "--dir", "run.requeue": "the same command again"}
STOPPED = {Exit.INTERRUPTED, Exit.TERMINATED, Exit.REQUEUE}  # asked to, with a checkpoint
POLL = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One run of the sweep."""

    name: str
    run_dir: Path
    config: Config


# -- what is to be run ---------------------------------------------------------------------------------------


def seeds(text: str) -> list[int]:
    """`0..4` (both ends) or `1,5,7`. SettingError otherwise."""
    try:
        first, dots, last = text.partition("..")
        found = list(range(int(first), int(last) + 1)) if dots else [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(f"seeds: {text!r} is neither 0..4 nor 1,5,7") from None
    if not found or min(found) < 0:
        raise SettingError(f"seeds: {text!r} names no seed; the first comes before the last, and none is below 0")
    return list(dict.fromkeys(found))


def cells(grid: Sequence[str]) -> list[ConfigLayer]:
    """All combinations of `NAME=V1,V2` as layers; one empty layer without a grid. SettingError for unknown names."""
    axes: list[list[ConfigLayer]] = []
    for text in grid:
        typed, equals, values = text.partition("=")
        name = typed.lstrip("-").replace("-", "_")
        if not equals or not all(values.split(",")):
            raise SettingError(f"grid: {text!r} is not NAME=V1,V2")
        if name in OWN:
            raise SettingError(f"grid: {parsing.flag_name(name)} is not varied here; use {OWN[name]}")
        if any(current_name(name) in map(current_name, axis[0]) for axis in axes):
            raise SettingError(f"grid: {parsing.flag_name(name)} is given twice; put its values behind each other")
        several = name in parsing.field_types() and "tuple" in str(parsing.field_types()[name])
        words = [value.replace("+", ",") if several else value for value in values.split(",")]
        axes.append([presets.split_flags([f"--{typed.lstrip('-')}={word}"], {})[0] for word in dict.fromkeys(words)])
    return [{name: given for layer in chosen for name, given in layer.items()} for chosen in itertools.product(*axes)]


def planned(
    target: str, base: Sequence[ConfigLayer], grid: Sequence[str], seeds: Sequence[int], folder: Path | None
) -> tuple[Path, list[Job]]:
    """The folder and every run, each checked; all cells of a seed before the next seed. Nothing is written."""
    for name in base[-1]:
        if name in OWN:
            raise SettingError(f"{parsing.flag_name(name)}: a sweep sets it itself; use {OWN[name]}")
    layers = cells(grid)
    given = {current_name(name) for name in base[-1]}
    twice = [name for name in layers[0] if current_name(name) in given]
    if twice:
        raise SettingError(f"{parsing.flag_name(twice[0])} is in the grid and given by itself; leave one out")
    if folder is None:
        first = parsing.build(*base, layers[0])
        varied = {current_name(name) for name in layers[0]}
        # Original names: the folder of a sweep that an older version started is found again.
        fixed = {original_name(name): value for name, value in relevant(first).items() if name not in varied}
        digest = hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()[:6]
        folder = Path("runs") / f"{_clean(target or first.env.name)}_sweep_{digest}"
    plan: dict[str, Job] = {}
    for seed, layer in itertools.product(seeds, layers):
        config = parsing.build(*base, layer, {"run.seed": RawValue(str(seed)), "log.quiet": RawValue("true")})
        values = flat(config)
        name = "_".join([*(_clean(named(key, values.get(current_name(key)))) for key in layer), f"s{seed}"])
        made = {"run.dir": RawValue(str(folder / name)), "run.seed": RawValue(str(seed)), "log.quiet": RawValue("true")}
        plan[name] = Job(name, folder / name, parsing.build(*base, layer, made))
    return folder, list(plan.values())


def _clean(text: str) -> str:
    """What may stand in a folder's name."""
    return re.sub(r"[^\w.=,+-]+", "-", text)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The folder, made and locked: a second sweep in it is exit 3."""
    for part in ("configs", "logs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel frees it when we die
    except OSError as error:
        os.close(lock)
        raise CommandError(Exit.BUSY, f"another sweep works in {folder}") from error
    try:
        yield
    finally:
        os.close(lock)


# -- running -------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A run under way."""

    job: Job
    process: subprocess.Popen[bytes]
    since: float


class Sweep:
    """The runs of one command. `run` waits; everything else is a step of it."""

    def __init__(self, folder: Path, plan: Sequence[Job], jobs: int, retry: bool) -> None:
        self.folder, self.run_spec, self.jobs, self.retry = folder, plan, jobs, retry
        self.exits: dict[str, list[Any]] = _remembered(folder)
        self.queue: list[tuple[Job, bool]] = []  # (run, resume)
        self.running: list[Running] = []
        self.failed: list[tuple[str, int]] = []
        self.stopped = 0  # exit code of a run that somebody else asked to stop
        self.done = 0
        self.walls: list[float] = []
        self.signal, self.signals = 0, 0

    def run(self) -> tuple[Exit, str]:
        """Start, wait, settle; how it ended, and one sentence."""
        for job in self.run_spec:
            self._sort(job)
        skipped = f"; {self.done} finished before" if self.done else ""
        _say(f"{len(self.run_spec)} runs in {self.folder}{skipped}")
        passed_on = 0
        with self._listening():
            while self.running or (self.queue and not self.signals):
                while self.queue and len(self.running) < self.jobs and not self.signals:
                    self._start(*self.queue.pop(0))
                if self.signals > passed_on:
                    passed_on = self.signals
                    self._pass_on(self.signal if self.signals == 1 else signal.SIGKILL)
                for one in [one for one in self.running if one.process.poll() is not None]:
                    self.running.remove(one)
                    self._settle(one)
                time.sleep(POLL)
        reached = f"{self.done} of {len(self.run_spec)} runs finished"
        if self.signals:
            code = Exit.INTERRUPTED if self.signal == signal.SIGINT else Exit.TERMINATED
            return code, f"{reached}; the same command goes on"
        if self.failed:
            names = ", ".join(f"{name} (exit {code})" for name, code in self.failed)
            hint = "" if self.retry else "; --retry tries them again"
            return _known(self.failed[0][1]), f"{reached}; failed: {names}{hint}; output in {self.folder / 'logs'}"
        if self.stopped:
            return _known(self.stopped), f"{reached}; others were stopped; the same command goes on"
        return Exit.FINISHED, reached

    def _sort(self, job: Job) -> None:
        """What to do about a run, from what its folder says."""
        code = int(self.exits.get(job.name, [0])[0])
        failed = code > 0 and code not in STOPPED
        if (job.run_dir / "config.toml").is_file():
            run = read(job.run_dir)
            _same_settings(job, run.config)
            if run.state == "running":
                raise CommandError(Exit.BUSY, f"{job.run_dir} is being trained by process {run.status.get('pid')}")
            if run.state == "finished" and _far_enough(job.config, run.config, run.status):
                self.done += 1
                return
            code = int(run.status.get("exit", 0)) if run.state not in ("killed", "unknown") else 0
            failed = code > 0 and code not in STOPPED
        if failed and not self.retry:
            _say(f"{job.name}  failed before (exit {code}); --retry tries it again")
            self.failed.append((job.name, code))
            return
        resume = bool(checkpoint.candidates(job.run_dir)) and (job.run_dir / "config.toml").is_file()
        self.queue.append((job, resume))

    def _start(self, job: Job, resume: bool) -> None:
        """A process in a session of its own: Ctrl-C of the terminal reaches it through us alone, once."""
        file = self.folder / "configs" / f"{job.name}.toml"
        write_atomically(file, to_toml(job.config))
        if not resume and job.run_dir.exists():
            _put_aside(job.run_dir)
        words = ["resume", str(job.run_dir)] if resume else ["train"]
        libc = ctypes.CDLL(None)  # loaded here: between fork and exec there is no time for it

        def die_with_us() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        with (self.folder / "logs" / f"{job.name}.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sfactory", *words, "--config", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_us,
            )
        self.running.append(Running(job, process, time.monotonic()))

    def _settle(self, one: Running) -> None:
        """One line about a run that ended, and its exit code into the book."""
        code, wall = int(one.process.returncode), time.monotonic() - one.since
        last = _last_words(self.folder / "logs" / f"{one.job.name}.txt")
        self.exits[one.job.name] = [code, last]
        write_atomically(self.folder / "sweep.json", json.dumps(self.exits, indent=1) + "\n")
        status = read_status(one.job.run_dir)
        if code == Exit.FINISHED:
            self.done += 1
            self.walls.append(wall)
            said = f"finished  {int(status.get('env_steps', 0)):,} steps in {duration(wall)}"
            reached = status.get("training_return")
            said += f", return {reached:.4g}" if isinstance(reached, int | float) else ""
        elif code in STOPPED or (self.signals and code < 0):
            self.stopped = code
            said = f"stopped at {int(status.get('env_steps', 0)):,} steps"
        else:
            self.failed.append((one.job.name, code))
            said = f"FAILED  {last or f'killed by signal {-code}'}"
        _say(f"[{self.done}/{len(self.run_spec)}] {one.job.name}  {said}{self._left()}")

    def _left(self) -> str:
        """How long still, from the runs so far."""
        left = len(self.queue) + len(self.running)
        if not left or not self.walls or self.signals:
            return ""
        return f"; about {duration(sum(self.walls) / len(self.walls) * left / self.jobs)} left"

    def _pass_on(self, number: int) -> None:
        """The runs are asked to save and end; at the second signal they are killed."""
        word = "killing" if number == signal.SIGKILL else "saving and stopping"
        _say(f"{word} {len(self.running)} runs")
        for one in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.process.pid, number)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals are noted; the loop acts on them."""

        def note(number: int, _: FrameType | None) -> None:
            self.signal, self.signals = self.signal or number, self.signals + 1

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup: it shall outlive its terminal
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _remembered(folder: Path) -> dict[str, list[Any]]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "sweep.json").read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _same_settings(job: Job, there: Config) -> None:
    """Exit 2 if a folder of this name holds a run of other settings."""
    ours, theirs = relevant(job.config), relevant(there)
    differ = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    if differ or job.config.run.seed != there.run.seed or job.config.env.protocol != there.env.protocol:
        name = parsing.flag_name(differ[0]) if differ else "run.seed or env.protocol"
        raise CommandError(Exit.USAGE, f"{job.run_dir} holds a run with another {name}; choose another --dir")


def _far_enough(wanted: Config, had: Config, status: dict[str, Any]) -> bool:
    """A finished run is done unless it was asked for fewer steps than now."""
    return wanted.stop == had.stop or 0 < wanted.stop.env_steps <= int(status.get("env_steps", 0))


def _put_aside(run_dir: Path) -> None:
    """A folder that holds nothing to resume makes room, and is kept."""
    aside = run_dir.parent / "aside"
    aside.mkdir(exist_ok=True)
    number = next(n for n in itertools.count(1) if not (aside / f"{run_dir.name}-{n}").exists())
    run_dir.rename(aside / f"{run_dir.name}-{number}")


def _last_words(log: Path) -> str:
    """The last line of a run's output: how it ended, in words."""
    with contextlib.suppress(OSError, IndexError):
        return log.read_text(errors="replace").strip().splitlines()[-1].removeprefix("sfactory: ")[:300]
    return ""


def _known(code: int) -> Exit:
    """The exit code of a run as ours; one that was killed from outside lost its supervisor."""
    with contextlib.suppress(ValueError):
        return Exit(code)
    return Exit.WORKER_LOST


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
