"""Choose the precision of a run's networks; `run.precision auto` measures it.

`auto` is bf16 only where two things hold. The kind of network has learned in bf16: image encoders (`IMAGE_ENCODERS`)
without a recurrent core; every other network stays in fp32. And this processor or GPU computes the passes of this
network at least `MIN_SPEEDUP` times as fast. That is measured in about a second: inference's forward pass and the
learner's forward and backward pass, fp32 and bf16 in turn, medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfactory.config import Config
from sfactory.device.accelerator import WARM, Accelerator, NotRecordable
from sfactory.device.machine import cpu_flags, lacks_bf16, processor
from sfactory.device.selection import pick_device, precision
from sfactory.envs import EnvSpec
from sfactory.learning.parts import GPU_NUMBERS
from sfactory.model.actor_critic import ActorCritic
from sfactory.model.encoders import Convolutions, Impala

IMAGE_ENCODERS = (Convolutions, Impala)
MIN_SPEEDUP = 1.1  # for less than this, bf16 is not worth its rounding
BUDGET_S = 1.0
PASS_S = 0.05  # of a learner's pass on a CPU, so that the budget is enough for several
FEWEST_ROWS, FEWEST_ROUNDS = 8, 3
NAMES = ("fp32", "bf16")

Pass = Callable[[], object]


class Choice(NamedTuple):
    """Precision of a run's networks."""

    name: str
    """fp32 or bf16."""
    line: str = ""
    """Why, for the log of the run; empty if there was nothing to decide."""


class Cost(NamedTuple):
    """Seconds per row."""

    inference: float
    """Forward pass."""
    learner: float
    """Forward and backward pass."""

    def of_step(self, config: Config) -> float:
        """Seconds of all passes of one environment step: acting, the targets of an update, its optimizer steps.

        An update has the last two of its replayed rows too.
        """
        update = config.starts_with_forward_pass * self.inference + config.passes_over_batch * self.learner
        return self.inference + (1.0 + config.replay.ratio) * update


def choose_precision(
    config: Config, spec: EnvSpec, model: ActorCritic, accelerator: Accelerator | None = None, recorded: str = ""
) -> Choice:
    """Precision for `run.precision`; measures only if it is auto and the answer is not known.

    Args:
        config, spec: of the run.
        model: the run's network, on the learner's device. It is not changed.
        accelerator: the learner's, None on a CPU.
        recorded: what the run was trained in so far; empty for a new run. `auto` keeps it.
    """
    if config.run.precision != "auto":
        return Choice(config.run.precision)
    undecided = may_be_bf16(config, model)
    if recorded:
        kept = f"precision: {recorded}, as in the checkpoint" if undecided or recorded != "fp32" else ""
        return Choice(recorded, kept)
    if not undecided:
        return Choice("fp32")
    device = pick_device(config.run.device)
    if device.type == "cpu" and lacks_bf16(cpu_flags()):
        return Choice("fp32", f"precision: fp32, this processor ({processor()}) has no bf16 instructions")
    if pick_device(config.run.inference_device or config.run.device).type != device.type:
        return Choice("fp32", "precision: fp32, because inference and learner are on devices of different kinds")
    return decide(config, *measure(config, spec, model, accelerator), _hardware(device))


def may_be_bf16(config: Config, model: ActorCritic) -> bool:
    """Whether `run.precision auto` considers bf16 for this run: async, image encoder, no recurrent core."""
    images = any(isinstance(module, IMAGE_ENCODERS) for module in model.modules())
    return config.run.precision == "auto" and config.run.mode == "async" and images and not model.state_size


def decide(config: Config, fp32: Cost, bf16: Cost, hardware: str) -> Choice:
    """The choice for measured costs. hardware: its description, for the line."""
    speedup = fp32.of_step(config) / bf16.of_step(config)
    name = "bf16" if speedup >= MIN_SPEEDUP else "fp32"
    found = f"{speedup:.2f} times as fast as fp32" if name == "bf16" else f"bf16 is {speedup:.2f} times as fast"
    figures = ", ".join(
        f"{kind} {1e6 * getattr(fp32, kind):,.1f} and {1e6 * getattr(bf16, kind):,.1f}" for kind in Cost._fields
    )
    return Choice(name, f"precision: {name}, {found} on {hardware}; us per row, fp32 and bf16: {figures}")


def measure(
    config: Config, spec: EnvSpec, model: ActorCritic, accelerator: Accelerator | None = None
) -> tuple[Cost, Cost]:
    """Costs of the network's passes in fp32 and in bf16, on the device of `model`."""
    device = next(model.parameters()).device
    contexts = [precision(name, device) for name in NAMES]
    parameters = list(model.parameters())

    def passes(rows: int, backward: bool) -> list[Pass]:
        """The pass over so many rows, in every precision."""
        obs = _observations(spec, rows, device)

        def work(number: int) -> None:
            with torch.set_grad_enabled(backward), contexts[number]():
                out = model(obs)
            if backward:
                torch.autograd.grad(out.params.sum() + out.value.sum(), parameters, allow_unused=True)

        return [_prepared(partial(work, number), accelerator) for number in range(len(NAMES))]

    acting = config.sampling.envs_per_group * spec.rows
    learning = config.trained_rows * spec.rows // config.batch.minibatches
    if accelerator is None:
        probe = passes(FEWEST_ROWS, True)[0]
        probe()  # libraries choose their kernels
        most = max(FEWEST_ROWS, int(PASS_S * FEWEST_ROWS / _seconds(probe, None)))
    else:
        most = max(FEWEST_ROWS, GPU_NUMBERS // sum(int(np.prod(leaf.shape)) for leaf in spec.obs.values()))
    acting, learning = min(acting, most), min(learning, most)
    times = _medians([*passes(acting, False), *passes(learning, True)], accelerator)
    fp32, bf16 = (Cost(times[number] / acting, times[number + len(NAMES)] / learning) for number in range(len(NAMES)))
    return fp32, bf16


def _observations(spec: EnvSpec, rows: int, device: torch.device) -> Mapping[str, Tensor]:
    """Random rows of every leaf, [rows, *shape]."""
    draws = np.random.default_rng(1)
    leaves = {name: draws.integers(0, 256, (rows, *leaf.shape)).astype(leaf.dtype) for name, leaf in spec.obs.items()}
    return {name: torch.from_numpy(leaf).to(device) for name, leaf in leaves.items()}


def _prepared(work: Callable[[], None], accelerator: Accelerator | None) -> Pass:
    """The work as a worker would run it: recorded where that is possible, else as it is."""
    if accelerator is None:
        return work
    for _ in range(WARM):
        accelerator.run(work)
        accelerator.wait()
    try:
        return accelerator.record(work)
    except NotRecordable:
        return lambda: accelerator.run(work)


def _medians(passes: list[Pass], accelerator: Accelerator | None) -> list[float]:
    """Seconds of every pass, one after the other in every round, so that all meet the same load."""
    rounds: list[list[float]] = []
    start = time.monotonic()
    for number in _until(start + BUDGET_S):
        seconds = [_seconds(one, accelerator) for one in passes]
        if number:  # the first round selects kernels and fills caches
            rounds.append(seconds)
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def _until(deadline: float) -> Iterator[int]:
    """0, 1, 2 ... until the deadline, at least one more than `FEWEST_ROUNDS`."""
    for number in count():
        if number > FEWEST_ROUNDS and time.monotonic() >= deadline:
            return
        yield number


def _seconds(one: Pass, accelerator: Accelerator | None) -> float:
    """Seconds of one pass: CPU time on a CPU, where other workers start meanwhile, else until the device is done."""
    clock = time.thread_time if accelerator is None else time.perf_counter
    start = clock()
    one()
    if accelerator is not None:
        accelerator.wait()
    return max(clock() - start, 1e-9)


def _hardware(device: torch.device) -> str:
    if device.type == "cpu":
        return f"this processor ({processor()})"
    return f"this GPU ({torch.cuda.get_device_name(device)})"
