"""Measure the cost of each stage, the speed of a whole run, and its share of the three rooflines.

Measurements of the same settings: a real run in processes, whose metrics give its speed and its bottleneck; the same
with one pass over the data, if the settings ask for more; the reference loops of `sfactory.tools.roofline`; and
sfactory's own stages one after the other in this process (lockstep, so each has the core to itself). Every figure is
the median of a few stretches of its measurement.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sfactory.config import Config, Eval, with_settings
from sfactory.config.toml_file import to_toml
from sfactory.device.machine import cores, processor
from sfactory.envs import EnvSpec
from sfactory.errors import Exit
from sfactory.monitor.bottleneck import bottleneck, busy_shares
from sfactory.monitor.format import human
from sfactory.monitor.known_rooflines import store_roofline
from sfactory.monitor.rows import read_rows
from sfactory.monitor.table import STAGES
from sfactory.run.reader import read_status

if TYPE_CHECKING:
    from sfactory.supervisor.lockstep import Lockstep

WARM_UP_S = 2.0  # start of a run that is not counted: caches, allocators, first episodes
START_TIMEOUT_S = 180.0  # without a first update; 32 environments of Atari start within a minute on a busy machine
STRETCHES = 5  # of a run; the median of their speeds counts
LONGER_S = 120.0  # a run goes on for up to this much longer until it has rows for MIN_STRETCHES
MIN_STRETCHES = 3
MICRO = 1e6


LINES = {"arithmetic": "arithmetic", "best_batch": "torch, best batch", "these_batches": "torch, these batches"}
"""The lines of `sfactory.tools.roofline` and their names in the report."""
PANEL_LINE = LINES["best_batch"]
INDENT, WIDTH = 22, 20  # columns of the report


class BenchFailed(RuntimeError):
    """The measured run failed or produced too few rows."""

    exit_code = Exit.USAGE


class Trial(NamedTuple):
    """Measurements of one real run, without its first `WARM_UP_S` seconds of training."""

    steps_per_second: float
    """Median of up to STRETCHES stretches."""
    start_s: float
    """From the command to the first row after an update, to within 0.2 s."""
    row: dict[str, float]
    """Mean of every metric over the rows after the warm-up."""
    memory_mb: dict[str, float]
    """Proportional set size by worker, in MB, at the end."""

    @property
    def unit(self) -> str:
        """What `steps_per_second` counts: where there are several agents, a row has the speed of environments too."""
        return "agent steps" if "charts/environment_SPS" in self.row else "steps"

    @property
    def bottleneck(self) -> str:
        return bottleneck(self.row)


class StageCosts(NamedTuple):
    """Core seconds per agent step of sfactory's own stages, run one after the other in one process."""

    environment: float
    hand_over: float
    inference: float
    learner: float

    @property
    def seconds(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class BenchReport:
    """The results of `sfactory bench`."""

    target: str
    machine: dict[str, Any]
    roofline: Any  # sfactory.tools.roofline.Roofline, whose module imports torch
    stages: StageCosts
    whole: Trial
    one_pass: Trial | None
    """The same settings with one epoch and one minibatch; None if these are the given settings."""
    agents: int = 0
    """Agents of an environment that has several: then all steps are those of agents. 0: one agent."""
    env_steps_per_step: float = 1.0
    """Steps of an environment for each step of an agent."""

    @property
    def unit(self) -> str:
        return "agent steps" if self.agents else "steps"

    @property
    def speed(self) -> str:
        """The speed of the run, with units."""
        speed = self.whole.steps_per_second
        if not self.agents:
            return f"{speed:,.0f} steps/s"
        return f"{speed:,.0f} agent steps/s (about {speed * self.env_steps_per_step:,.0f} env steps/s)"

    @property
    def shares(self) -> dict[str, float]:
        """Speed of the run divided by each of the three lines."""
        return {name: self.whole.steps_per_second / self._line(name).steps_per_second for name in LINES}

    @property
    def share(self) -> float:
        """Share of the line that the panel also shows: torch, best batch."""
        return self.shares["best_batch"]

    def _line(self, name: str) -> Any:
        return getattr(self.roofline, name)

    def as_dict(self) -> dict[str, Any]:
        """Return the results, for --json; costs are core seconds per step."""
        stages = ("environment", "inference", "training")
        lines = {
            name: {
                **{stage: getattr(line, stage)._asdict() for stage in stages},
                "limits": line.limits, "steps_per_second": line.steps_per_second,
            }
            for name, line in ((name, self._line(name)) for name in (*LINES, "one_pass"))
        }  # fmt: skip
        r, one = self.roofline, self.one_pass
        return {
            "target": self.target, "machine": self.machine, "shares": self.shares,
            "unit": self.unit, "agents": self.agents, "env_steps_per_step": self.env_steps_per_step,
            "rooflines": {"cores": r.cores, "passes": r.passes, **lines},
            "tasks": {task: each._asdict() for task, each in r.tasks.items()},
            "stages": self.stages._asdict(),
            "whole": {**self.whole._asdict(), "bottleneck": self.whole.bottleneck},
            "one_pass": None if one is None else {**one._asdict(), "share": self._one_pass_share(one)},
        }  # fmt: skip

    def _one_pass_share(self, one: Trial) -> float:
        return one.steps_per_second / float(self.roofline.one_pass.steps_per_second)

    def text(self) -> str:
        """Return the results as text."""
        m = self.machine
        head = [f"{self.target}  on {m['cores']} cores, {m['cpu']}{m['gpu'] and ', ' + m['gpu']}, torch {m['torch']}"]
        if self.agents:
            head += [
                f"{self.agents} agents: every step here is a step of one agent, and costs are core time per agent step"
            ]
        return "\n".join([*head, "", *self._costs(), "", *self._rooflines(), "", *self._run()])

    def _costs(self) -> list[str]:
        """The table of costs, and how they were measured."""
        columns = [*(self._line(name) for name in LINES), self.stages]
        names = "".join(f"  {name:>{WIDTH}}" for name in (*LINES.values(), "this run"))
        lines = [f"{'us per agent step' if self.agents else 'core time per step, us':{INDENT}}{names}"]
        for label, stage in (("environment", 0), ("hand-over", None), ("inference", 1), ("learner", 2), ("sum", -1)):
            cells = "".join(f"  {_cell(column, stage):>{WIDTH}}" for column in columns)
            lines.append(f"{label:{INDENT}}{cells}")
        best, here = self.roofline.best_batch, self.roofline.these_batches
        return [
            *lines,
            "",
            _entry("environment", best.environment.how),
            *(_entry("", _task_line(task, each)) for task, each in self.roofline.tasks.items()),
            _entry("learner", self.roofline.passes),
            _entry(LINES["arithmetic"], self.roofline.arithmetic.training.how),
            *_how(LINES["best_batch"], best),
            *_how(LINES["these_batches"], here),
        ]

    def _rooflines(self) -> list[str]:
        """Speed that each line allows, and the share of the run."""
        lines = []
        for name, label in LINES.items():
            line, share = self._line(name), self.shares[name]
            faster = ", faster than the reference loops" if share > 1 else ""
            speed = f"{human(line.steps_per_second):>6} {self.unit}/s (limit: {line.limit})"
            lines.append(_entry(label, f"{speed}; the run is {100 * share:.0f}%{faster}"))
        return lines

    def _run(self) -> list[str]:
        w, one = self.whole, self.one_pass
        busy = ", ".join(f"{name} {100 * share:.0f}%" for name, share in busy_shares(w.row).items())
        each = ", ".join(f"{name} {mb:.0f}" for name, mb in w.memory_mb.items())
        speed = f"{human(w.steps_per_second):>6} {self.unit}/s"
        if self.agents:
            speed += f", about {human(w.steps_per_second * self.env_steps_per_step)} env steps/s"
        lines = [_entry("as given", f"{speed}, {100 * self.share:.0f}% of {PANEL_LINE}")]
        if one is not None:
            share = f"{100 * self._one_pass_share(one):.0f}% of {PANEL_LINE} with one pass"
            lines.append(_entry("one pass", f"{human(one.steps_per_second):>6} {self.unit}/s, {share}"))
        return [
            *lines,
            _entry("busy", f"{busy}; the {w.bottleneck} is the bottleneck"),
            _entry("where", self._bottleneck_stages()),
            _entry("start-up", f"{w.start_s:.1f} s from the command to the first update"),
            _entry("memory", f"{sum(w.memory_mb.values()):.0f} MB ({each})"),
        ]

    def _bottleneck_stages(self) -> str:
        """Return the shares of the bottleneck's stages, largest first."""
        kind = self.whole.bottleneck
        parts = {stage: self.whole.row.get(f"stage/{kind}/{stage}", 0.0) for stage in STAGES.get(kind, ())}
        ordered = sorted(parts.items(), key=lambda part: -part[1])
        return f"{kind}: " + ", ".join(f"{stage} {100 * share:.0f}%" for stage, share in ordered if share > 0.005)


def _entry(label: str, text: str) -> str:
    return f"{label:{INDENT}}  {text}"


def _task_line(task: str, cost: Any) -> str:
    return f"{task}: {100 * cost.share:.0f}% of the steps, {MICRO * cost.seconds:.2f} us in groups as in the run"


def _how(label: str, line: Any) -> list[str]:
    return [_entry(label, f"inference: {line.inference.how}"), _entry("", f"learner: {line.training.how}")]


def _cell(column: Any, stage: int | None) -> str:
    """Microseconds of a stage of a roofline's line or of StageCosts; None: the hand-over, -1: the sum."""
    if stage == -1:
        seconds = column.seconds
    elif isinstance(column, StageCosts):
        seconds = column.hand_over if stage is None else (column.environment, column.inference, column.learner)[stage]
    elif stage is None:
        return ""
    else:
        seconds = column[stage].seconds
    return f"{MICRO * seconds:.2f}"


def machine() -> dict[str, Any]:
    """Return the machine the numbers were measured on."""
    import platform

    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "cores": cores(), "cpu": processor(), "gpu": gpu, "python": platform.python_version(),
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def bench(target: str, config: Config, seconds: float, log: Callable[[str], None] = lambda line: None) -> BenchReport:
    """Measure everything at the given settings: runs of `seconds`, the other parts for about as long together."""
    from sfactory.device.selection import pick_device
    from sfactory.envs import make_spec
    from sfactory.tools.roofline import roofline

    log(f"a run of {seconds:g} s ...")
    of_rows: list[float] = []
    shares: dict[str, float] = {}

    def inspect(run: Path) -> None:
        of_rows.append(rows_per_step(run))
        shares.update(task_shares(run))

    whole, one_pass = trial(config, seconds, inspect), None
    if config.optimizer_steps_per_update > 1:
        log(f"a run of {seconds:g} s with one pass over the data ...")
        one_pass = trial(with_settings(config, {"batch.epochs": 1, "batch.minibatches": 1}), seconds)
    log("reference loops: environment, forward, backward ...")
    spec = make_spec(config.env.tasks[0], config.env.options)
    device = pick_device(config.run.device).type
    settled = with_precision(config, spec)
    rows = round(whole.row.get("queue/inference_batch", 0.0)) or None
    lines = roofline(settled, spec, cores(), device, max(4.0, 0.5 * seconds), rows, shares)
    store_roofline(config, lines.best_batch.steps_per_second)
    log("sfactory's own stages, one by one ...")
    stages = own_stages(settled, max(2.0, 0.25 * seconds), shares)
    report = BenchReport(target, machine(), lines, stages, whole, one_pass)
    if not spec.agents:
        return report
    length = whole.row.get("charts/episodic_length", float("inf"))
    without_resets = 1 / (1 + 1 / length)
    return replace(report, agents=spec.rows, env_steps_per_step=of_rows[0] / spec.rows * without_resets)


def rows_per_step(run: Path) -> float:
    """Rows of a run for each step of an agent: those of resets and of agents that wait count as rows only."""
    found = read_status(run)
    return float(found["ledger"]["trained"] / found["env_steps"])


def task_shares(run: Path) -> dict[str, float]:
    """Task -> its share of the rows that a run has sampled; empty for a single task.

    All tasks have as many groups, but groups of a fast task may be stepped more often than those of a slow one.
    """
    rows = read_status(run).get("rows_by_task", {})
    return {task: count / sum(rows.values()) for task, count in rows.items()}


def with_precision(config: Config, spec: EnvSpec) -> Config:
    """The settings with the precision that a run chooses here; lockstep, which measures the stages, would take fp32."""
    from sfactory.device.accelerator import accelerator_of
    from sfactory.device.selection import pick_device
    from sfactory.learning.network import build_model
    from sfactory.learning.precision import choose_precision

    device = pick_device(config.run.device)
    model = build_model(config, spec).to(device)
    choice = choose_precision(config, spec, model, accelerator_of(device))
    return with_settings(config, {"run.precision": choice.name})


def own_stages(config: Config, seconds: float, shares: Mapping[str, float] | None = None) -> StageCosts:
    """Measure core time per valid step of environment, hand-over, inference and learner, one after the other.

    shares: of the steps of every task, if they differ. In lockstep all are alike, so only the environments' cost is of
    these shares.
    """
    import torch

    from sfactory.device.accelerator import WARM
    from sfactory.envs import make_group, make_spec
    from sfactory.supervisor.lockstep import Lockstep
    from sfactory.tools.roofline import equal_shares, median_rate, random_steps
    from sfactory.workers.shared import RunSpec

    alone = replace(
        config,
        run=replace(config.run, mode="lockstep", learner_threads=1),
        checkpoint=replace(config.checkpoint, exact=False),
    )
    tasks, size = config.env.tasks, config.sampling.envs_per_group
    alike, environments = equal_shares(config), dict[str, float]()
    for task in tasks:
        group = make_group(task, size, list(range(1, size + 1)), config.env.options)
        environments[task] = median_rate(random_steps(group), seconds / 3 / len(tasks))
        group.close()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes of a run
    with tempfile.TemporaryDirectory(prefix="sfactory-bench-") as folder:
        run = Lockstep(RunSpec(alone, make_spec(tasks[0], config.env.options), folder, 0))
        try:
            warm = 2 if run.learner.accelerator is None else WARM + 2  # a GPU captures its graphs in between
            while run.learner.updates < warm:
                run.turn()
            stretches = [_worker_seconds(run, seconds / STRETCHES) for _ in range(STRETCHES)]
        finally:
            run.close()
            torch.set_num_threads(threads)
    inference, sampler, learner = (statistics.median(each) for each in zip(*stretches, strict=True))
    # The time of an environment depends on its actions, so the difference can be slightly below zero.
    here, there = (sum(part[task] * environments[task] for task in tasks) for part in (alike, shares or alike))
    return StageCosts(there, max(0.0, sampler - here), inference, learner)


def _worker_seconds(run: Lockstep, seconds: float) -> tuple[float, ...]:
    """Seconds per valid step of inference, samplers and learner, over about `seconds` and at least one update."""
    spent, turn = [0.0, 0.0, 0.0], ((run.inference,), tuple(run.samplers), (run.learner,))
    before, began = run.learner.env_steps, time.perf_counter()
    while run.learner.env_steps == before or time.perf_counter() - began < seconds:
        for number, workers in enumerate(turn):
            started = time.perf_counter()
            for worker in workers:
                worker.step()
            spent[number] += time.perf_counter() - started
        run.sink.drain()
    return tuple(time_ / (run.learner.env_steps - before) for time_ in spent)


def trial(config: Config, seconds: float, inspect: Callable[[Path], object] = lambda run: None) -> Trial:
    """Measure a real run from the command line for `seconds` of training, longer if its updates take seconds each.

    inspect: called with the run folder before it is removed.
    Raises BenchFailed if the run fails, or has too few rows after LONGER_S more seconds.
    """
    with tempfile.TemporaryDirectory(prefix="sfactory-bench-") as folder:
        place = Path(folder)
        (place / "settings.toml").write_text(to_toml(measured_config(config, place / "run")))
        began = time.monotonic()
        command = [sys.executable, "-m", "sfactory", "train", config.env.name, "--config", str(place / "settings.toml")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            rows, start_s = measured_rows(process, place / "run", began, seconds)
            memory = memory_of(process.pid)
        finally:
            process.terminate()  # a run that has ended already ignores it
            _, err = process.communicate()
        if process.returncode != Exit.TERMINATED:
            last_line = (err.strip().splitlines() or ["no output"])[-1].removeprefix("sfactory: ")
            raise BenchFailed(f"the measured run failed: {last_line}")
        inspect(place / "run")
    return Trial(median_speed(rows), start_s, _mean(rows), memory)


def measured_config(config: Config, run: Path) -> Config:
    """The settings of a measured run in the folder `run`: async, without an end, evaluations or saved checkpoints."""
    lag = config.batch.forced_lag if config.run.mode == "async" else 0  # most settings of lockstep refuse it in async
    return replace(
        config,
        run=replace(config.run, dir=str(run), mode="async", init_from=""),
        sampling=replace(config.sampling, auto=False),
        batch=replace(config.batch, forced_lag=lag),
        stop=replace(config.stop, env_steps=10**12, frames=0, seconds=0.0, target_return=None),
        log=replace(config.log, every_seconds=0.2, wandb=False, quiet=True),
        checkpoint=replace(config.checkpoint, every_seconds=1e9, milestones=0),
        eval=Eval(),  # its other settings are refused where nothing is evaluated
    )


def measured_rows(
    process: subprocess.Popen[str], run: Path, began: float, seconds: float
) -> tuple[list[dict[str, float]], float]:
    """Wait until a run is measured, or has ended; returns its rows after the warm-up and the time of the first row.

    process, run: the command and its folder; began: its start on the monotonic clock; seconds: as of `trial`.
    The run needs a short `log.every_seconds`. Raises BenchFailed if it has no or too few rows in time.
    """
    start_s, counted = 0.0, list[dict[str, float]]()
    while process.poll() is None:
        time.sleep(0.5 if start_s else 0.05)  # reading uses the measured cores: rarely once it trains
        trained = [row for row in read_rows(run) if row.get("charts/updates", 0) >= 1]
        passed = time.monotonic() - began - start_s
        if trained and not start_s:
            start_s = time.monotonic() - began
        elif not trained and passed > START_TIMEOUT_S:
            raise BenchFailed(f"no update within {START_TIMEOUT_S:g} s")
        counted = [row for row in trained if row["seconds"] >= WARM_UP_S]
        if len(counted) > MIN_STRETCHES and counted[-1]["seconds"] - counted[0]["seconds"] >= seconds:
            break
        if start_s and passed > WARM_UP_S + seconds + LONGER_S:
            rows = f"{len(counted)} metrics row{'s' * (len(counted) != 1)}"
            raise BenchFailed(f"only {rows} in {passed:.0f} s, {MIN_STRETCHES + 1} are needed; use smaller batches")
    return counted, start_s


def median_speed(rows: Sequence[Mapping[str, float]]) -> float:
    """Steps per second of a run: the median of up to STRETCHES stretches of its rows, of which there are two or more.

    Every row is written after an update, so a stretch holds whole updates.
    """
    count = min(STRETCHES, len(rows) - 1)
    bounds = [rows[number * (len(rows) - 1) // count] for number in range(count + 1)]
    return statistics.median(
        (after["env_steps"] - before["env_steps"]) / (after["seconds"] - before["seconds"])
        for before, after in itertools.pairwise(bounds)
    )


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the rows that have it."""
    names = {name for row in rows for name in row}
    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def memory_of(pid: int) -> dict[str, float]:
    """Return the proportional set size of supervisor and workers in MB; shared pages are split evenly."""
    import psutil

    found: dict[str, float] = {}
    try:
        supervisor = psutil.Process(pid)
        for process in (supervisor, *supervisor.children(recursive=True)):
            try:
                output = Path(os.readlink(f"/proc/{process.pid}/fd/2"))
                name = "supervisor" if process.pid == pid else output.stem
                if output.parent.name != "debug" and process.pid != pid:  # reapers, Python's resource tracker
                    name = "others"
                found[name] = found.get(name, 0.0) + process.memory_full_info().pss / 2**20
            except (OSError, psutil.Error):
                continue
    except psutil.Error:
        pass
    return found
