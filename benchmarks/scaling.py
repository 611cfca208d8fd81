"""Measure how a run scales with its samplers, compare it with a model, and apply the model to larger machines.

    python benchmarks/scaling.py -o benchmarks/results/scaling.md      4 minutes, on an otherwise idle machine

1. Inputs, measured in one process by processor time: what a sampler and inference spend on the hand-over of a group,
   with the caches as they left them, and with caches that other work has filled in between.
2. Runs of 1 to 8 samplers that divide the same 64 environments. The environment computes nothing but takes a fixed
   processor time per step, so that the hand-over is the only cost that depends on the division.
3. The model with the costs of presets on this processor, for 2 to 64 cores.

A busy machine makes the runs slower but not the processor time per step, which is compared too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from sfactory.config import Config, Env, parsing, presets, with_settings
from sfactory.config.toml_file import to_toml
from sfactory.device.machine import cores
from sfactory.envs import make_spec
from sfactory.learning.network import build_model
from sfactory.monitor.rows import read_rows
from sfactory.native.network import CHUNK, SHARED_FLOPS
from sfactory.supervisor.cores import by_cores, worker_cores
from sfactory.supervisor.lockstep import Lockstep
from sfactory.tools.bench import machine, own_stages
from sfactory.workers.names import learner_name
from sfactory.workers.shared import Phase, RunSpec
from sfactory.workers.worker import Worker

SPIN_US = 100.0  # processor time of a synthetic environment's step: between MuJoCo (30) and Atari (270)
ENVS = 64
DIVISIONS = ((1, 1), (2, 1), (4, 1), (8, 1), (8, 2))  # samplers, inference workers
GROUPS = (1, 2, 4, 8, 16)  # in one forward pass
TARGETS = ("minatar/breakout", "mujoco/hopper", "atari/pong")
MACHINES = (2, 4, 8, 16, 64)
WARM_S = 2.0
OTHER_DATA = 32 << 20  # bytes that other work reads between two turns of a worker: more than most caches hold
MICRO = 1e6


class HandOver(NamedTuple):
    """Seconds that do not depend on environment and network."""

    act: float
    """Of a sampler, per step of a group."""
    turn: float
    """Of inference, per forward pass."""
    group: float
    """Of inference, per group in a forward pass."""


class Work(NamedTuple):
    """Seconds of one thread per step of an environment."""

    environment: float
    network: float
    """Forward pass of inference."""
    learner: float
    """All epochs."""


class Processes(NamedTuple):
    """The processes of a run and the threads of its learner."""

    samplers: int
    groups: int
    """Per sampler."""
    envs: int
    """Per group."""
    workers: int
    """Inference workers."""
    threads: int


# -- the model -------------------------------------------------------------------------------------------------------


def limits(h: HandOver, work: Work, p: Processes, num_cores: int, waiting: float = 0.0) -> dict[str, float]:
    """Steps per second that each kind of worker, and all cores together, allow. The smallest is the prediction.

    waiting: groups in a forward pass; 0: half of a worker's groups, which a saturated one finds while the others step.
    """
    waiting = waiting or max(1.0, p.samplers * p.groups / (2 * p.workers))
    sampler = h.act / p.envs + work.environment
    inference = (h.turn / waiting + h.group) / p.envs + work.network
    return {
        "samplers": p.samplers / sampler,
        "inference": p.workers / inference,
        "learner": p.threads / work.learner,
        "cores": num_cores / (sampler + inference + work.learner),
    }


def processes(config: Config, num_cores: int) -> Processes:
    """Processes of a configuration on a machine, as `by_cores` settles them."""
    config = by_cores(config, num_cores)
    s, chunks = config.sampling, -(-config.batch_rows // config.batch.minibatches // CHUNK)
    weights = build_model(config, make_spec(config.env.name, config.env.options)).flat_size()
    shared = 2 * CHUNK * weights >= SHARED_FLOPS  # a chunk is worth another thread
    threads = min(worker_cores(config, learner_name(), num_cores), chunks) if shared else 1
    return Processes(s.num_samplers, s.groups_per_sampler, s.envs_per_group, config.run.inference_workers, threads)


# -- inputs ----------------------------------------------------------------------------------------------------------


def synthetic(samplers: int, workers: int, groups: int = 2, envs: int = 0, spin_us: float = 0.0) -> Config:
    """Settings of the synthetic environment with a network of 8 units and one pass over 2,048 rows."""
    return with_settings(
        Config(env=Env("faults/count", settings={"length": 100, "spin_us": spin_us})),
        {
            "run.device": "cpu", "run.learner_threads": 1, "run.inference_workers": workers,
            "sampling.num_samplers": samplers, "sampling.groups_per_sampler": groups,
            "sampling.envs_per_group": envs or ENVS // (samplers * groups), "sampling.rollout_length": 32,
            "model.hidden": (8,),
        },
    )  # fmt: skip


def lockstep(config: Config, folder: str) -> Lockstep:
    config = with_settings(config, {"run.mode": "lockstep", "checkpoint.exact": False})
    return Lockstep(RunSpec(config, make_spec(config.env.name, config.env.options), folder, 0))


def woken(worker: Worker) -> None:
    """One turn of a worker's loop after a ring, without the wait."""
    worker.heartbeat(Phase.IDLE)
    worker.bell.wait(0.0)
    worker.bell.drain()
    worker.heartbeat(Phase.WORK)
    worker.step()


def stage_times(config: Config, turns: int = 640, cold: bool = False) -> tuple[float, float, float, float]:
    """Processor seconds per turn of inference, sampler without environment, environment, and of the learner per row.

    cold: other data fills the caches before every turn of a worker.
    """
    other = np.zeros(OTHER_DATA if cold else 0, np.int8)
    spent = dict.fromkeys(("inference", "sampler", "environment", "learner"), 0.0)

    def timed(stage, function):
        def call(*arguments):
            began = time.thread_time()
            result = function(*arguments)
            spent[stage] += time.thread_time() - began
            return result

        return call

    with tempfile.TemporaryDirectory(prefix="sfactory-scaling-") as folder:
        run = lockstep(config, folder)
        for group in run.samplers[0].runs:
            group.envs.step = timed("environment", group.envs.step)
        workers = (("inference", run.inference), ("sampler", run.samplers[0]), ("learner", run.learner))
        steps = [timed(stage, partial(woken, worker)) for stage, worker in workers]
        try:
            for turn in range(turns + 64):
                if turn == 64:  # warm: every slot was used
                    spent = dict.fromkeys(spent, 0.0)
                    trained = run.learner.env_steps
                for step in steps:
                    other.sum(dtype=np.int64)
                    step()
                run.sink.drain()
            rows = run.learner.env_steps - trained
        finally:
            run.close()
    inference, sampler, environment = (spent[name] / turns for name in ("inference", "sampler", "environment"))
    return inference, sampler - environment, environment, spent["learner"] / rows


def hand_over(cold: bool = False) -> HandOver:
    """Costs of the hand-over, from runs with 1 to 16 groups. cold: see `stage_times`."""
    found = [stage_times(synthetic(1, 1, groups, 4), cold=cold) for groups in GROUPS]
    group, turn = np.polyfit(GROUPS, [inference for inference, *_ in found], 1)
    act = found[0][1]  # one group: a sampler is woken once per step of a group
    return HandOver(act, float(turn), float(group))


def synthetic_work(envs: int) -> Work:
    """Costs of the synthetic environment in groups of `envs`; its network is part of the hand-over."""
    _, _, environment, learner = stage_times(synthetic(1, 1, ENVS // envs, envs))
    return Work(environment / ENVS + SPIN_US / MICRO, 0.0, learner)


def preset_work(config: Config, h: HandOver, seconds: float) -> Work:
    """Costs of a preset with one sampler, measured one after the other in this process."""
    config = by_cores(replace(config, run=replace(config.run, mode="lockstep")), 1)
    found, s = own_stages(config, seconds), config.sampling
    network = found.inference - (h.turn + s.num_groups * h.group) / s.num_envs
    return Work(found.environment, max(0.0, network), found.learner)


# -- runs ------------------------------------------------------------------------------------------------------------


class Speed(NamedTuple):
    """What a run reached."""

    steps_per_second: float
    cpu: float
    """Processor seconds of all workers per step. The supervisor's depend on time, not on steps."""
    batch: float
    """Environments per forward pass of inference."""


class Moment(NamedTuple):
    """Progress of a run: seconds and steps of training, processor seconds of its workers."""

    seconds: float
    steps: float
    cpu: float


def moment(process: subprocess.Popen[bytes], run: Path, seconds: float) -> Moment:
    """The first row at or after so many seconds of training."""
    while process.poll() is None:
        row = next((row for row in read_rows(run) if row["seconds"] >= seconds), None)
        if row is not None:
            workers = psutil.Process(process.pid).children(recursive=True)
            return Moment(row["seconds"], row["env_steps"], sum(sum(worker.cpu_times()[:2]) for worker in workers))
        time.sleep(0.02)
    raise RuntimeError(f"the run ended with exit code {process.returncode}")


def run_speed(config: Config, seconds: float) -> Speed:
    """Speed of a real run."""
    with tempfile.TemporaryDirectory(prefix="sfactory-scaling-") as folder:
        run, file = Path(folder) / "run", Path(folder) / "settings.toml"
        settings = {
            "run.dir": str(run), "stop.env_steps": 10**12, "log.every_seconds": 0.1, "log.quiet": True,
            "checkpoint.every_seconds": 1e9,
        }  # fmt: skip
        file.write_text(to_toml(with_settings(config, settings)))
        command = [sys.executable, "-m", "sfactory", "train", config.env.name, "--config", str(file)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            first = moment(process, run, WARM_S)
            last = moment(process, run, first.seconds + seconds)
            passes = [row.get("queue/inference_batch") for row in read_rows(run) if row["seconds"] >= first.seconds]
        finally:
            process.terminate()
            process.wait()
    steps = last.steps - first.steps
    batch = statistics.mean(batch for batch in passes if batch)
    return Speed(steps / (last.seconds - first.seconds), (last.cpu - first.cpu) / steps, batch)


# -- the page --------------------------------------------------------------------------------------------------------


def table(head: str, rows: Sequence[Sequence[object]]) -> list[str]:
    return [head, "|---" * (head.count("|") - 1) + "|", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def runs_table(h: HandOver, h_cold: HandOver, seconds: float, rounds: int) -> list[str]:
    """Measured and predicted speed of every division."""
    found: dict[tuple[int, int], list[Speed]] = {division: [] for division in DIVISIONS}
    for _ in range(rounds):
        for division, results in found.items():
            results.append(run_speed(synthetic(*division, spin_us=SPIN_US), seconds))
            print(division, results[-1], flush=True)
    rows, measured_one, predicted_one = [], 0.0, 0.0
    for (samplers, workers), results in found.items():
        speed, cpu, batch = (statistics.median(values) for values in zip(*results, strict=True))
        p = Processes(samplers, 2, ENVS // (2 * samplers), workers, 1)
        work = synthetic_work(p.envs)
        allowed = limits(h, work, p, cores(), batch / p.envs)
        cpu_cold = cores() / limits(h_cold, work, p, cores(), batch / p.envs)["cores"]
        predicted, cpu_predicted = min(allowed.values()), cores() / allowed["cores"]
        measured_one, predicted_one = measured_one or speed, predicted_one or predicted
        rows.append((
            samplers, workers, p.envs, f"{speed:,.0f}", f"{predicted:,.0f}", f"{speed / measured_one:.2f}",
            f"{predicted / predicted_one:.2f}", f"{MICRO * cpu:.1f}", f"{MICRO * cpu_predicted:.1f}",
            f"{MICRO * cpu_cold:.1f}", f"{batch:.0f}",
        ))  # fmt: skip
    head = (
        "| samplers | inference workers | envs per group | steps/s | predicted | over one sampler | predicted "
        "| processor us per step | predicted | with cold caches | environments per forward pass |"
    )
    return table(head, rows)


def model_table(name: str, config: Config, work: Work, h: HandOver) -> list[str]:
    """Predicted speed of a preset on every machine, and of one sampler there."""
    one = with_settings(config, {"sampling.num_samplers": 1})
    rows = []
    for num_cores in MACHINES:
        p = processes(config, num_cores)
        allowed = limits(h, work, p, num_cores)
        single = min(limits(h, work, processes(one, num_cores), num_cores).values())
        limit = min(allowed, key=allowed.__getitem__)
        split = f"{p.samplers} x {p.groups} x {p.envs}"
        rows.append((name, num_cores, split, p.workers, p.threads, f"{allowed[limit]:,.0f}", limit, f"{single:,.0f}"))
    return [" | ".join(map(str, row)) for row in rows]


def page(seconds: float, rounds: int) -> str:
    """Measure everything and return the page."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    h, h_cold, m = hand_over(), hand_over(cold=True), machine()
    print(h, h_cold, flush=True)
    measured = runs_table(h, h_cold, seconds, rounds)
    predicted, costs = [], []
    for target in TARGETS:
        typed = parsing.build(*presets.target_layers(target), {})
        once = with_settings(typed, {"batch.epochs": 1, "batch.minibatches": 1})
        for name, config in ((target, typed), (f"{target}, one pass", once)):
            work = preset_work(config, h, seconds)
            print(name, work, flush=True)
            costs.append((name, *(f"{MICRO * cost:.1f}" for cost in work)))
            predicted += model_table(name, config, work, h)
    head = (
        "| preset | cores | samplers x groups x envs | inference workers | learner threads | steps/s | limit "
        "| one sampler |"
    )
    return TEXT.format(
        cpu=m["cpu"], cores=m["cores"], date=m["date"], torch=m["torch"], act=MICRO * h.act, turn=MICRO * h.turn,
        group=MICRO * h.group, act_cold=MICRO * h_cold.act, turn_cold=MICRO * h_cold.turn,
        group_cold=MICRO * max(0.0, h_cold.group), data=OTHER_DATA >> 20, load=load,
        spin=SPIN_US, chunk=CHUNK, envs=ENVS, rounds=rounds, seconds=seconds,
        runs="\n".join(measured), costs="\n".join(table("| preset | environment | forward pass | learner |", costs)),
        model="\n".join(table(head, [row.split(" | ") for row in predicted])),
    )  # fmt: skip


TEXT = """\
# Scaling with cores

`python benchmarks/scaling.py -o benchmarks/results/scaling.md` on {cores} cores of {cpu}, torch {torch}, {date}.
Load average before the measurement: {load:.1f}. On a busy machine the steps per second are too low; processor times are
little affected.

## The hand-over

Processor time, one thread, with an environment and a network that compute almost nothing. *Cold*: other work reads
{data} MB between two turns, so that a worker finds nothing of its own in the caches.

| | us | cold, us |
|---|---|---|
| sampler, per step of a group | {act:.1f} | {act_cold:.1f} |
| inference, per forward pass | {turn:.1f} | {turn_cold:.1f} |
| inference, per group in a forward pass | {group:.1f} | {group_cold:.1f} |

## One to eight samplers

{envs} environments divided among more and more samplers, two groups each. An environment step takes {spin:.0f} us of
processor time. Medians of {rounds} interleaved rounds of {seconds:g} s. The prediction is the smallest of four limits:
samplers, inference, learner, and all cores together (`limits` in the script), with the number of environments per
forward pass that the run had. {cores} cores allow no more than {cores} busy processes; beyond that number the rows show
whether smaller groups and more processes cost more than predicted. They do: a process that shares its core with others
finds less of its data in the caches each time it runs. The column *with cold caches* is the processor time of the model
if it found nothing there; the runs are between the two.

{runs}

## Larger machines

Processor time per step of three presets on this processor, in us, measured in one process with one thread each:

{costs}

The model with these costs, on the CPU alone. Samplers and inference workers are those of `sampling.num_samplers 0`. The
learner has a thread for every {chunk} rows of a minibatch, if its network is large enough for that; half of the groups
wait at a forward pass. *One sampler* is the same machine without the division. The model knows no memory bandwidth, no
shared caches and no lower clock of many busy cores, so it is an upper bound.

Where the learner is the limit, more cores change nothing until it uses more of them: a preset's update is a chain of
small minibatches. Samplers and inference workers matter with one pass over the data, or a faster update.

{model}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-o", type=Path, help="file to write; without it the page is printed")
    args = parser.parse_args()
    text = page(args.seconds, args.rounds)
    if args.o:
        args.o.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
