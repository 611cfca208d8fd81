"""Measure the all-reduce of two learners, and predict the speed of 1, 8 and 64 learners.

    python benchmarks/allreduce.py -o benchmarks/results/learners.md

Starts two processes that form a process group over gloo on this machine, measures the all-reduce of one number and of
the gradient of each network, and in one process alone the time of an optimizer step (forward, backward, Adam) on a
minibatch of the preset. The model and its assumptions are in the section that it writes; `learners.py` writes the other
sections of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from learners import TITLE
from peers import with_section

import sfactory
from sfactory.device.machine import processor
from sfactory.envs import EnvSpec, Leaf
from sfactory.envs.action_leaf import ActionLeaf
from sfactory.learning.flat import FlatParameters
from sfactory.learning.network import build_model
from sfactory.model.actor_critic import ActorCritic

HEADING = "The cost of averaging gradients"
LEARNERS = (1, 8, 64)
ROUNDS, REPEATS = 30, 10


class Workload(NamedTuple):
    """A network, with the preset that trains it."""

    name: str
    preset: str
    encoder: str
    obs: Leaf
    actions: int


WORKLOADS = (
    Workload("MinAtar", "minatar/breakout", "minatar", Leaf((10, 10, 4), "bool"), 6),
    Workload("Nature", "atari/breakout", "nature", Leaf((4, 84, 84), "uint8", (0.0,), (255.0,)), 4),
    Workload("IMPALA", "atari/breakout", "impala", Leaf((4, 84, 84), "uint8", (0.0,), (255.0,)), 4),
)


class Link(NamedTuple):
    """What connects two learners: seconds per message, and bytes per second."""

    name: str
    latency: float
    bandwidth: float

    def seconds(self, learners: int, size: float) -> float:
        """Of a ring all-reduce: 2 (W - 1) messages in sequence, each of a W-th part of the vector."""
        hops = 2 * (learners - 1)
        return hops * (self.latency + size / learners / self.bandwidth) if hops else 0.0


NETWORKS = (
    Link("25 Gbit/s Ethernet, TCP", 30e-6, 0.8 * 25e9 / 8),
    Link("NVLink or InfiniBand, NCCL", 5e-6, 0.8 * 200e9 / 8),
)
"""Assumed, not measured: four fifths of the nominal bandwidth."""


def config_of(workload: Workload) -> sfactory.Config:
    return sfactory.make_config(workload.preset, model={"encoder": workload.encoder})


def network(workload: Workload) -> ActorCritic:
    actions = {"action": ActionLeaf((), "int64", "discrete", (workload.actions,))}
    return build_model(config_of(workload), EnvSpec(workload.preset, {"obs": workload.obs}, actions))


def smallest_seconds(
    work: Callable[[], object],
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Of several rounds the one that other processes have disturbed least."""
    work()
    times = []
    for _ in range(rounds):
        start = clock()
        for _ in range(repeats):
            work()
        times.append((clock() - start) / repeats)
    return min(times)


def step_seconds(workload: Workload) -> float:
    """Processor time of an optimizer step on one minibatch of the preset, one thread."""
    torch.set_num_threads(1)
    config, model = config_of(workload), network(workload)
    rows = config.batch_rows // config.batch.minibatches
    shape = (rows, *workload.obs.shape)
    obs = {"obs": torch.from_numpy(np.random.default_rng(0).integers(0, 2, shape).astype(workload.obs.dtype))}
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def step() -> None:
        out = model(obs)
        optimizer.zero_grad()
        (out.params.square().mean() + out.value.square().mean()).backward()
        optimizer.step()

    return smallest_seconds(step, rounds=3, repeats=1, clock=time.process_time)


def measure_collectives() -> dict[int, float]:
    """Numbers in the vector -> seconds of an all-reduce; run by both processes of the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = {}
    for size in sorted({1, *(FlatParameters(list(network(w).parameters())).gradient.numel() for w in WORKLOADS)}):
        vector = torch.zeros(size)
        found[size] = smallest_seconds(lambda vector=vector: dist.all_reduce(vector))
    return found


def both_processes() -> dict[int, float]:
    """Start the two processes; what the first one measured."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--measure"]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    return {int(size): seconds for size, seconds in json.loads(outputs[0]).items()}


def efficiency(link: Link, learners: int, size: float, step: float, minibatches: int) -> float:
    """Speed of one of W learners over that of one alone.

    Per update: an all-reduce of the gradient in every optimizer step, and three small ones for moments.
    """
    alone = minibatches * step
    extra = minibatches * link.seconds(learners, size) + 3 * link.seconds(learners, 8.0)
    return alone / (alone + extra)


def section(collectives: dict[int, float], steps: dict[str, float]) -> str:
    """What was measured, and what the model makes of it."""
    largest = max(collectives)
    # With two learners the model is 2 latency + size / bandwidth.
    here = Link(
        "this machine, gloo over loopback", collectives[1] / 2, 4 * largest / (collectives[largest] - collectives[1])
    )
    lines = [
        f"`python benchmarks/allreduce.py -o benchmarks/results/learners.md` on {os.cpu_count()} cores of "
        f"{processor()}, torch {torch.__version__}, Python {platform.python_version()}, {date.today()}. Load average "
        f"before the measurement: {LOAD:.1f}; on a busy machine all times are too long.",
        "",
        "### Measured",
        "",
        f"All-reduce of one number between two processes over gloo: {1e6 * collectives[1]:.0f} us. A step is forward, "
        "backward and Adam on one minibatch of the preset, in processor time of one thread. Each time is the smallest "
        "of several rounds.",
        "",
        "| network | parameters | gradient, MB | rows | step, ms | all-reduce, 2 learners, ms | all-reduce / step |",
        "|---|---|---|---|---|---|---|",
    ]
    sizes = {w.name: FlatParameters(list(network(w).parameters())).gradient.numel() for w in WORKLOADS}
    for w in WORKLOADS:
        config, size = config_of(w), sizes[w.name]
        count, reduce = sum(p.numel() for p in network(w).parameters()), collectives[size]
        lines.append(
            f"| {w.name} | {count:,} | {4e-6 * size:.2f} | {config.batch_rows // config.batch.minibatches} | "
            f"{1e3 * steps[w.name]:.1f} | {1e3 * reduce:.2f} | {reduce / steps[w.name]:.1%} |"
        )
    lines += [
        "",
        "### Model",
        "",
        "A ring all-reduce over W learners sends 2 (W - 1) messages in sequence, each of a W-th part of the gradient. "
        "Nothing overlaps with computing. Per update the learners also exchange three small vectors of moments.",
        "",
        "    all_reduce(W) = 2 (W - 1) (latency + bytes / (W * bandwidth))",
        "    speed(W) / (W * speed(1)) = steps * step / (steps * (step + all_reduce(W)) + 3 * all_reduce_small(W))",
        "",
        f"From the measurement: latency {1e6 * here.latency:.0f} us, bandwidth {here.bandwidth / 1e9:.2f} GB/s. The "
        "other connections are assumed.",
        "",
        "| network | step, ms | connection | " + " | ".join(f"{n} learner{'s' * (n > 1)}" for n in LEARNERS) + " |",
        "|---|---|---|" + "---|" * len(LEARNERS),
    ]
    for w in WORKLOADS:
        config = config_of(w)
        for link, faster in ((here, 1), (NETWORKS[0], 1), *((network, 100) for network in NETWORKS)):
            step = steps[w.name] / faster
            found = [
                efficiency(link, n, 4.0 * sizes[w.name], step, config.optimizer_steps_per_update) for n in LEARNERS
            ]
            cells = [f"{n * e:.1f} times ({e:.0%})" for n, e in zip(LEARNERS, found, strict=True)]
            lines.append(f"| {w.name} | {1e3 * step:.3g} | {link.name} | {' | '.join(cells)} |")
    lines += ["", ASSUMPTIONS]
    return "\n".join(lines)


ASSUMPTIONS = """\
*times*: predicted speed over that of one learner, in brackets per learner. This machine has no room for 64 learners:
the first row of each network shows what the measured latency and bandwidth would give if every learner had cores of its
own.

### When the prediction is wrong

- **Each learner has cores of its own.** On this machine two learners with their samplers share two cores, so that two
  ranks are not faster than one; the prediction is about machines that are added, not processes.
- **The learner is the bottleneck.** Where samplers are, the time of an all-reduce costs nothing until the learner
  becomes the bottleneck: the prediction is too low.
- **Each pair of learners has the bandwidth for itself.** Several ranks of a machine share its network card; divide the
  bandwidth by their number.
- **A ring.** gloo and NCCL choose other algorithms for small vectors and many learners, whose number of messages grows
  with log W: then the loss through latency, which is most of it for MinAtar with 64 learners, is smaller than
  predicted.
- **Learners reach the all-reduce at the same time.** Samplers run ahead, so that only the mean speed of a rank counts;
  with `sampling.slots_per_group 1`, or where updates take unequal time, everyone waits for the slowest in every step.
- **Steps of a GPU.** That a GPU takes a hundredth of the time for a step is assumed. A connection that is fast enough
  for CPUs need not be for GPUs.
- More learners are larger batches. Above the critical batch size the same steps per second teach less
  ([algorithms](../../docs/algorithms.md)); that is no matter of time and not in the model."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure_collectives()))
        return
    text = section(both_processes(), {w.name: step_seconds(w) for w in WORKLOADS})
    print(text)
    if args.output:
        page = args.output.read_text() if args.output.exists() else TITLE
        args.output.write_text(with_section(page, HEADING, text))


LOAD = os.getloadavg()[0]

if __name__ == "__main__":
    main()
