"""Measure the cost of each stage, the speed of a whole run, and its share of the roofline.

Three measurements of the same settings: the reference loops of `sfactory.tools.roofline`; sfactory's own stages one
after the other in this process (lockstep, so each has the core to itself); and a real run in processes, whose metrics
give its speed and its bottleneck.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sfactory.config import Config, with_settings
from sfactory.config.toml_file import to_toml
from sfactory.device.machine import cores, processor
from sfactory.envs import EnvSpec
from sfactory.errors import Exit
from sfactory.monitor.bottleneck import bottleneck, busy_shares
from sfactory.monitor.format import human
from sfactory.monitor.known_rooflines import store_roofline
from sfactory.monitor.rows import read_rows
from sfactory.monitor.table import STAGES

WARM_UP_S = 2.0  # start of a run that is not counted: caches, allocators, first episodes
START_TIMEOUT_S = 60.0  # without a first update
MICRO = 1e6


class BenchFailed(RuntimeError):
    """The measured run failed or produced too few rows."""

    exit_code = Exit.USAGE


class Trial(NamedTuple):
    """Measurements of one real run, without its first `WARM_UP_S` seconds of training."""

    steps_per_second: float
    start_s: float
    """From the command to the first row after an update, to within 0.2 s."""
    row: dict[str, float]
    """Mean of every metric over the rows after the warm-up."""
    memory_mb: dict[str, float]
    """Proportional set size by worker, in MB, near the end."""

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

    @property
    def share(self) -> float:
        return self.whole.steps_per_second / self.roofline.steps_per_second

    def as_dict(self) -> dict[str, Any]:
        """Return the results, for --json; costs are core seconds per step."""
        r = self.roofline
        costs = {name: getattr(r, name)._asdict() for name in ("environment", "inference", "training")}
        return {
            "target": self.target, "machine": self.machine, "share": self.share,
            "roofline": {**costs, "passes": r.passes, "cores": r.cores, "steps_per_second": r.steps_per_second},
            "stages": self.stages._asdict(),
            "whole": {**self.whole._asdict(), "bottleneck": self.whole.bottleneck},
        }  # fmt: skip

    def text(self) -> str:
        """Return the results as text."""
        r, s, w = self.roofline, self.stages, self.whole
        rows = [
            ("environment", r.environment.seconds, s.environment, r.environment.how),
            ("hand-over", None, s.hand_over, "slots, slot table, doorbells"),
            ("inference", r.inference.seconds, s.inference, r.inference.how),
            ("learner", r.training.seconds, s.learner, "; ".join(filter(None, (r.passes, r.training.how)))),
            ("sum", r.seconds, s.seconds, ""),
        ]
        m = self.machine
        lines = [f"{self.target}  on {m['cores']} cores, {m['cpu']}{m['gpu'] and ', ' + m['gpu']}, torch {m['torch']}"]
        lines += ["", f"{'':12} {'at best':>9} {'here':>9}   core time per step, microseconds"]
        for name, best, measured, how in rows:
            reference = "" if best is None else f"{MICRO * best:.2f}"
            lines.append(f"{name:12} {reference:>9} {MICRO * measured:9.2f}   {how}".rstrip())
        kind = "cores / sum of the best" if r.device == "cpu" else "the environment alone on all cores"
        busy = ", ".join(f"{name} {100 * share:.0f}%" for name, share in busy_shares(w.row).items())
        memory = sum(w.memory_mb.values())
        each = ", ".join(f"{name} {mb:.0f}" for name, mb in w.memory_mb.items())
        lines += [
            "",
            f"roofline     {human(r.steps_per_second)} steps/s ({kind})",
            f"whole        {human(w.steps_per_second)} steps/s = {100 * self.share:.0f}% of the roofline",
            f"busy         {busy}; the {w.bottleneck} is the bottleneck",
            f"where        {self._bottleneck_stages()}",
            f"start-up     {w.start_s:.1f} s from the command to the first update",
            f"memory       {memory:.0f} MB ({each})",
        ]
        return "\n".join(lines)

    def _bottleneck_stages(self) -> str:
        """Return the shares of the bottleneck's stages, largest first."""
        kind = self.whole.bottleneck
        parts = {stage: self.whole.row.get(f"stage/{kind}/{stage}", 0.0) for stage in STAGES.get(kind, ())}
        ordered = sorted(parts.items(), key=lambda part: -part[1])
        return f"{kind}: " + ", ".join(f"{stage} {100 * share:.0f}%" for stage, share in ordered if share > 0.005)


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
    """Measure everything at the given settings: a run of `seconds`, the other parts for about as long."""
    from sfactory.device.selection import pick_device
    from sfactory.envs import make_spec
    from sfactory.tools.roofline import roofline

    spec = make_spec(config.env.tasks[0], config.env.arguments)
    device = pick_device(config.run.device).type
    settled = _with_precision(config, spec)
    log("reference loops: environment, forward, backward ...")
    best = roofline(settled, spec, cores(), device, max(4.0, 0.5 * seconds))
    store_roofline(config, best.steps_per_second)
    log("sfactory's own stages, one by one ...")
    stages = own_stages(settled, max(2.0, 0.25 * seconds))
    log(f"a run of {seconds:g} s ...")
    return BenchReport(target, machine(), best, stages, trial(config, seconds))


def _with_precision(config: Config, spec: EnvSpec) -> Config:
    """The settings with the precision that a run chooses here; lockstep, which measures the stages, would take fp32."""
    from sfactory.device.accelerator import accelerator_of
    from sfactory.device.selection import pick_device
    from sfactory.learning.network import build_model
    from sfactory.learning.precision import choose_precision

    device = pick_device(config.run.device)
    model = build_model(config, spec).to(device)
    choice = choose_precision(config, spec, model, accelerator_of(device))
    return with_settings(config, {"run.precision": choice.name})


def own_stages(config: Config, seconds: float) -> StageCosts:
    """Measure core time per valid step of environment, hand-over, inference and learner, one after the other."""
    from sfactory.device.accelerator import WARM
    from sfactory.envs import make_group, make_spec
    from sfactory.supervisor.lockstep import Lockstep
    from sfactory.tools.roofline import best_rate, random_steps
    from sfactory.workers.shared import RunSpec

    alone = replace(
        config,
        run=replace(config.run, mode="lockstep", learner_threads=1),
        checkpoint=replace(config.checkpoint, exact=False),
    )
    task, size = config.env.tasks[0], config.sampling.envs_per_group
    group = make_group(task, size, list(range(1, size + 1)), config.env.arguments)
    environment = best_rate(random_steps(group), seconds / 3)
    group.close()
    with tempfile.TemporaryDirectory(prefix="sfactory-bench-") as folder:
        run = Lockstep(RunSpec(alone, make_spec(task, config.env.arguments), folder, 0))
        spent, turn = [0.0, 0.0, 0.0], ((run.inference,), tuple(run.samplers), (run.learner,))
        try:
            warm = 2 if run.learner.accelerator is None else WARM + 2  # a GPU captures its graphs in between
            while run.learner.updates < warm:
                run.turn()
            before, began = run.learner.env_steps, time.perf_counter()
            while run.learner.env_steps == before or time.perf_counter() - began < seconds:
                for number, workers in enumerate(turn):
                    started = time.perf_counter()
                    for worker in workers:
                        worker.step()
                    spent[number] += time.perf_counter() - started
                run.sink.drain()
            steps = run.learner.env_steps - before
        finally:
            run.close()
    inference, sampler, learner = (time_ / steps for time_ in spent)
    # The time of an environment depends on its actions, so the difference can be slightly below zero.
    return StageCosts(environment, max(0.0, sampler - environment), inference, learner)


def trial(config: Config, seconds: float, inspect: Callable[[Path], object] = lambda run: None) -> Trial:
    """Measure a real run from the command line for about `seconds` of training. Raises BenchFailed if it fails.

    inspect: called with the run folder before it is removed.
    """
    with tempfile.TemporaryDirectory(prefix="sfactory-bench-") as folder:
        place = Path(folder)
        measured = replace(
            config,
            run=replace(config.run, dir=str(place / "run"), mode="async", init_from=""),
            sampling=replace(config.sampling, auto=False),
            stop=replace(config.stop, env_steps=10**12, frames=0, seconds=seconds + WARM_UP_S, target_return=None),
            log=replace(config.log, every_seconds=0.2, wandb=False, quiet=True),
            checkpoint=replace(config.checkpoint, every_seconds=1e9, milestones=0),
            eval=replace(config.eval, every=0),
        )
        (place / "settings.toml").write_text(to_toml(measured))
        began = time.monotonic()
        command = [sys.executable, "-m", "sfactory", "train", config.env.name, "--config", str(place / "settings.toml")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            rows, start_s, memory = _watch(process, place / "run", began, seconds)
            _, err = process.communicate()
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate()
        if process.returncode == 0 and len(rows) < 2:
            raise BenchFailed(
                f"only {len(rows)} metrics row{'s' * (len(rows) != 1)} in {seconds:g} s; increase --seconds"
            )
        if process.returncode != 0:
            last_line = (err.strip().splitlines() or ["no output"])[-1].removeprefix("sfactory: ")
            raise BenchFailed(f"the measured run failed: {last_line}")
        inspect(place / "run")
    warm = [row for row in rows if row["seconds"] >= WARM_UP_S] or rows
    first, last = (
        (warm if len(warm) > 1 else rows)[0],
        rows[-2 if len(rows) > 2 else -1],
    )  # the last row includes the final save
    speed = (last["env_steps"] - first["env_steps"]) / max(last["seconds"] - first["seconds"], 1e-9)
    middle = _mean(warm)
    return Trial(speed, start_s, middle, memory)


def _watch(
    process: subprocess.Popen[str], run: Path, began: float, seconds: float
) -> tuple[list[dict[str, float]], float, dict[str, float]]:
    """Wait for a run to end; returns its rows, the time of the first one, and its memory near the end."""
    start_s = 0.0
    memory: dict[str, float] = {}
    while process.poll() is None:
        time.sleep(0.5 if start_s else 0.05)  # reading uses the measured cores: rarely once it trains
        rows = read_rows(run)
        trained = [row for row in rows if row.get("charts/updates", 0) >= 1]
        if trained and not start_s:
            start_s = time.monotonic() - began
        if trained and not memory and trained[-1]["seconds"] > 0.7 * (seconds + WARM_UP_S):
            memory = memory_of(process.pid)
        if not trained and time.monotonic() - began > START_TIMEOUT_S:
            raise BenchFailed(f"no update within {START_TIMEOUT_S:g} s")
    return [row for row in read_rows(run) if row.get("charts/updates", 0) >= 1], start_s, memory


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
                if output.parent.name != "debug" and process.pid != pid:  # the orphan killer, Python's resource tracker
                    name = "others"
                found[name] = found.get(name, 0.0) + process.memory_full_info().pss / 2**20
            except (OSError, psutil.Error):
                continue
    except psutil.Error:
        pass
    return found
