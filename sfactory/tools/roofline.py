"""Measure what this machine allows, with reference loops outside sfactory's own code.

Three lines, each of N cores, in steps per second:

    arithmetic             the operations of the network at the speed of this machine's matrix products
    torch, best batch      the network in plain torch, with the batch size, threads and memory format that cost least
    torch, these batches   plain torch at the batches, threads and processes of the run, with loss and optimizer

All three add the environment, which is its own library in a plain loop; of several tasks the mean by the shares in
which a run steps them. The cost of a stage is core time per step. In
an environment with several agents that is the step of one agent: rows in which an agent waits or is not there are in no
reference, so what they cost lowers the share. N cores allow N / (sum of the costs), because no order of work is faster
unless a stage becomes cheaper. The third line also has a limit per process: a learner that has one thread does not
become faster with more cores. A slower sfactory cannot raise its share of any line. A faster one can exceed the lines
of torch: they are a reference, not a bound. If a GPU computes the network, every line is the environment alone.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from sfactory.config import Config
from sfactory.device.thread_pool import pool_size
from sfactory.envs import EnvSpec, Group, make_group, raw_loop
from sfactory.learning.parallel_network import FEW_NUMBERS, FEW_ROWS
from sfactory.tools.plain_torch import PlainTorch, encoder_of, flops_per_row, plain_network
from sfactory.tools.random_rollout import random_action

BATCHES = {"nature": (32, 128, 512), "impala": (32, 128, 512)}
DEFAULT_BATCHES = (128, 512, 2048)  # rows per batch that are tried for every other network
SMALL_GROUP = 8  # environments whose state fits into any cache
ACT_BATCHES = (64, 256)  # inference computes whole groups: at least 64 environments
STRETCHES = 5  # of a measurement; their median counts
MOST_NUMBERS = 1 << 26  # of the observations of a reference batch: 2,377 frames of Atari
PRODUCTS = (512, 1024)  # rows and columns of square matrices; larger ones are not faster


class Cost(NamedTuple):
    """The time of one stage per agent step, in seconds."""

    seconds: float
    """Core time."""
    how: str
    """The loop and the settings it was measured with."""
    wall: float = 0.0
    """Time on the threads it was measured with; 0 if it was not measured on threads."""


class TaskCost(NamedTuple):
    """One of several tasks."""

    share: float
    """Of the steps of the run."""
    seconds: float
    """Core time of a step of its environments, at the group size of the run."""


class Line(NamedTuple):
    """The costs of all stages in one reference, and the speed they allow."""

    environment: Cost
    inference: Cost
    training: Cost
    limits: dict[str, float]
    """What limits the speed -> steps per second it allows."""

    @property
    def seconds(self) -> float:
        """Core time of one step."""
        return self.environment.seconds + self.inference.seconds + self.training.seconds

    @property
    def limit(self) -> str:
        """What allows the fewest steps per second."""
        return min(self.limits, key=self.limits.__getitem__)

    @property
    def steps_per_second(self) -> float:
        return self.limits[self.limit]


class Roofline(NamedTuple):
    """The three lines of a workload."""

    cores: int
    device: str
    passes: str
    """The passes per trained step: forward and backward passes, plus a forward pass before the first epoch."""
    arithmetic: Line
    best_batch: Line
    these_batches: Line
    one_pass: Line
    """`best_batch` of the same workload with one epoch and one minibatch."""
    tasks: Mapping[str, TaskCost] = MappingProxyType({})
    """What the environment of `these_batches` is the mean of, by task; empty for a single task."""


ALL_CORES = "all cores"


def roofline(
    config: Config,
    spec: EnvSpec,
    cores: int,
    device: str = "cpu",
    seconds: float = 6.0,
    inference_rows: int | None = None,
    task_shares: Mapping[str, float] | None = None,
) -> Roofline:
    """Measure all reference loops in about `seconds`, one after the other.

    inference_rows: rows of a forward pass of the inference worker; None: one group.
    task_shares: share of the steps of every task, with the sum 1; None: all tasks alike, as all have as many groups.
    """
    by_size, shares = environment_costs(config, seconds / 4), task_shares or equal_shares(config)
    environment = {size: mean_cost(costs, shares) for size, costs in by_size.items()}
    best, here = min(environment.values()), environment[config.sampling.envs_per_group]
    own = by_size[config.sampling.envs_per_group]
    tasks = {task: TaskCost(shares[task], cost.seconds) for task, cost in own.items()} if len(own) > 1 else {}
    epochs = config.passes_over_batch
    again = config.starts_with_forward_pass  # a forward pass over the batch before the first optimizer step
    passes = f"{epochs} x forward and backward{' + 1 forward' if again else ''}"
    times = 1.0 + config.replay.ratio  # every row is trained on so often, in the mean
    if config.replay.ratio:
        passes = f"{times:g} x ({passes})"
    samplers = {"samplers": 1 / busiest_sampler(config, own, shares)}
    if device != "cpu":
        nothing = Cost(0.0, f"on the device ({device}), no CPU time")
        alone = _line(cores, best, nothing, nothing)
        run = _line(cores, here, nothing, nothing, samplers)
        return Roofline(cores, device, passes, alone, alone, run, alone, tasks)
    threads = torch.get_num_threads()
    try:
        arithmetic = _arithmetic(config, spec, cores, seconds / 8)
        forward = _cheapest(config, spec, "forward", ACT_BATCHES, sorted({1, cores}), seconds / 8)
        update = _cheapest(config, spec, "forward_backward", _batches(config, spec), sorted({1, cores}), seconds / 4)
        acting = _acting(config, spec, inference_rows or config.sampling.envs_per_group * spec.rows, seconds / 8)
        training = _training(config, spec, seconds / 8)
    finally:
        torch.set_num_threads(threads)
    all_passes = Cost(times * (epochs * update.seconds + again * forward.seconds), update.how)
    one_pass = Cost(times * update.seconds, update.how)
    processes = {**samplers, "inference": 1 / acting.wall, "learner": 1 / training.wall}
    return Roofline(
        cores,
        device,
        passes,
        arithmetic=_line(cores, best, *(_passes(arithmetic, times * epochs, times * again))),
        best_batch=_line(cores, best, forward, all_passes),
        these_batches=_line(cores, here, acting, training, processes),
        one_pass=_line(cores, best, forward, one_pass),
        tasks=tasks,
    )


def _line(
    cores: int, environment: Cost, inference: Cost, training: Cost, limits: dict[str, float] | None = None
) -> Line:
    line = Line(environment, inference, training, limits or {})
    return line._replace(limits={ALL_CORES: cores / line.seconds, **line.limits})


# -- time of a loop ----------------------------------------------------------------------------------------------


def median_rate(step: Callable[[], int], seconds: float, give_up: float = float("inf")) -> float:
    """Return the median of the seconds per step of up to STRETCHES stretches, about `seconds` together.

    step: returns the number of steps it took. If one call takes longer than a stretch, there are fewer stretches.
    give_up: if the second call takes longer than this per step, its time is returned without further measurement.
    """
    step()
    began = time.perf_counter()
    count = step()
    once = time.perf_counter() - began
    if once / max(1, count) > give_up:
        return once / max(1, count)
    stretches = max(1, min(STRETCHES, int(seconds / once)))
    return statistics.median(_stretch(step, seconds / stretches) for _ in range(stretches))


def _stretch(step: Callable[[], int], seconds: float) -> float:
    """Seconds per step over at least one call and about `seconds`."""
    count, began, elapsed = 0, time.perf_counter(), 0.0
    while not count or elapsed < seconds:
        count += step()
        elapsed = time.perf_counter() - began
    return elapsed / count


# -- environment -------------------------------------------------------------------------------------------------


def environment_costs(config: Config, seconds: float) -> dict[int, dict[str, Cost]]:
    """Measure one agent step in the environment's own library: group size -> task -> cost.

    Two sizes, the configured one and a small one: large groups may exceed the cache.
    """
    env, many = config.env, config.sampling.envs_per_group
    sizes = sorted({min(SMALL_GROUP, many), many})
    costs: dict[int, dict[str, Cost]] = {}
    for size in sizes:
        costs[size] = {}
        for task in env.tasks:
            step, how, group = raw_loop(task, size, 1, env.options), "its library alone", None
            if step is None:
                group = make_group(task, size, list(range(1, size + 1)), env.options)
                step, how = random_steps(group), "through sfactory's group; its family has no plain loop"
            rate = median_rate(step, seconds / len(sizes) / len(env.tasks))
            if group is not None:
                group.close()
            costs[size][task] = Cost(rate, f"{how}, {size} environments")
    return costs


def equal_shares(config: Config) -> dict[str, float]:
    """Task -> share of the steps if all groups are stepped as often, as in lockstep."""
    return dict.fromkeys(config.env.tasks, 1 / len(config.env.tasks))


def mean_cost(costs: Mapping[str, Cost], shares: Mapping[str, float]) -> Cost:
    """The cost of a step of any task. costs, shares: by task."""
    if len(costs) == 1:
        return next(iter(costs.values()))
    seconds = sum(shares[task] * cost.seconds for task, cost in costs.items())
    how = " or ".join(dict.fromkeys(cost.how for cost in costs.values()))
    return Cost(seconds, f"mean of {len(costs)} tasks, each measured alone; {how}")


def busiest_sampler(config: Config, costs: Mapping[str, Cost], shares: Mapping[str, float]) -> float:
    """Core time of the sampler with the most work, per step of the run: samplers may have groups of different tasks."""
    sampling, tasks = config.sampling, config.env.tasks
    groups_of_task = sampling.num_groups // len(tasks)
    work = [0.0] * sampling.samplers
    for group in range(sampling.num_groups):
        task = tasks[config.task_of(group)]
        work[group // sampling.groups_per_sampler] += shares[task] * costs[task].seconds / groups_of_task
    return max(work)


def random_steps(group: Group) -> Callable[[], int]:
    """Return a function that steps the group with random actions and returns the number of steps.

    That is the number of environments; with several agents that of the agents that acted.
    """
    spec, generator = group.spec, np.random.default_rng(1)
    obs, size = group.reset(), group.num_envs * spec.rows
    if spec.mask:

        def allowed() -> int:
            nonlocal obs
            done = group.step(random_action(spec, obs, generator))
            obs = done.obs
            return int(np.count_nonzero(done.valid)) if spec.agents else size

        return allowed
    actions = [
        {
            name: generator.random((size, *leaf.shape), dtype=np.float32) - 0.5
            if leaf.kind == "box"
            else generator.integers(np.broadcast_to(np.asarray(leaf.sizes).reshape(leaf.shape), (size, *leaf.shape)))
            for name, leaf in spec.actions.items()
        }
        for _ in range(64)
    ]
    counter = itertools.count()

    def step() -> int:
        done = group.step(actions[next(counter) % 64])
        return int(np.count_nonzero(done.valid)) if spec.agents else size

    return step


# -- arithmetic --------------------------------------------------------------------------------------------------


class _Arithmetic(NamedTuple):
    """Operations of a row, and how many of them a core computes."""

    forward: float
    forward_backward: float
    flops_per_core_second: float
    how: str


def _arithmetic(config: Config, spec: EnvSpec, cores: int, seconds: float) -> _Arithmetic:
    fastest, how = matrix_products(cores, _precisions(config), seconds)
    return _Arithmetic(*flops_per_row(config, spec), fastest, how)


def _passes(found: _Arithmetic, epochs: float, again: float) -> tuple[Cost, Cost]:
    """The costs of inference and training. epochs, again: forward and backward, and forward passes per agent step."""
    acting, training = found.forward, epochs * found.forward_backward + again * found.forward
    return tuple(  # type: ignore[return-value]
        Cost(flops / found.flops_per_core_second, f"{flops / 1e6:.3g} MFLOP at {found.how}")
        for flops in (acting, training)
    )


def matrix_products(cores: int, precisions: Sequence[bool], seconds: float) -> tuple[float, str]:
    """Measure the fastest matrix product: floating-point operations per core second, and a description.

    precisions: True for bf16, False for fp32.
    """
    products: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"torch.mm": torch.mm}
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products["oneDNN"] = _onednn_product
    tries = [
        (count, product, half, size)
        for count, product, half, size in itertools.product(sorted({1, cores}), products, precisions, PRODUCTS)
        if product != "oneDNN" or not half or _onednn_has_bf16()
    ]
    best, how = 0.0, ""
    for count, product, half, size in tries:
        torch.set_num_threads(count)
        a = torch.ones(size, size, dtype=torch.bfloat16 if half else torch.float32)
        operations = 2 * size**3

        def step(a: torch.Tensor = a, product: str = product, operations: int = operations) -> int:
            products[product](a, a)
            return operations

        rate = 1 / (median_rate(step, seconds / len(tries)) * count)
        if rate > best:
            threads = f"{count} thread{'s' * (count > 1)}"
            best, how = rate, f"{count * rate / 1e9:.0f} GFLOP/s ({product}, {_name(half)}, {threads})"
    return best, how


@functools.cache
def _onednn_has_bf16() -> bool:
    """Whether oneDNN multiplies bf16 matrices on this processor: with AVX2 alone it does not."""
    a = torch.ones(16, 16, dtype=torch.bfloat16)
    try:
        _onednn_product(a, a)
    except RuntimeError:
        return False
    return True


def _onednn_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


# -- networks ----------------------------------------------------------------------------------------------------


def _batches(config: Config, spec: EnvSpec) -> tuple[int, ...]:
    return BATCHES.get(encoder_of(config, spec), DEFAULT_BATCHES)


def _precisions(config: Config) -> tuple[bool, ...]:
    """Whether bf16 is tried: only for a run in bf16, where the faster one counts. Resolve `auto` before."""
    return (False, True) if config.run.precision == "bf16" else (False,)


def _name(half: bool) -> str:
    return "bf16" if half else "fp32"


def _acting(config: Config, spec: EnvSpec, rows: int, seconds: float) -> Cost:
    """The inference worker's forward pass at the run's batch and threads."""
    return _cheapest(config, spec, "forward", (_at_most(spec, rows),), (config.run.inference_threads,), seconds)


def _training(config: Config, spec: EnvSpec, seconds: float) -> Cost:
    """All optimizer steps of an update at the run's minibatches, and the pass over the whole batch before them."""
    all_rows, times = config.trained_rows * spec.rows, 1.0 + config.replay.ratio
    rows = _at_most(spec, all_rows // config.batch.minibatches)
    step = _cheapest(config, spec, "training_step", (rows,), (learner_threads(config, spec, rows),), seconds / 2)
    core_time, wall = config.passes_over_batch * step.seconds, config.passes_over_batch * step.wall
    if config.starts_with_forward_pass:
        rows = _at_most(spec, all_rows)
        whole = _cheapest(config, spec, "forward", (rows,), (learner_threads(config, spec, rows),), seconds / 2)
        core_time, wall = core_time + whole.seconds, wall + whole.wall
    return Cost(times * core_time, f"{step.how}, with loss and optimizer", times * wall)


def learner_threads(config: Config, spec: EnvSpec, rows: int) -> int:
    """Number of threads that the learner uses for a minibatch: a few hundred rows each, at most its pool."""
    few = max(1, min(FEW_ROWS, FEW_NUMBERS // _numbers(spec)))
    return max(1, min(pool_size(config.run.learner_threads), round(rows / few)))


def _at_most(spec: EnvSpec, rows: int) -> int:
    """Fewer rows if their observations need too much memory: large batches cost the same per row."""
    return max(1, min(rows, MOST_NUMBERS // _numbers(spec)))


def _numbers(spec: EnvSpec) -> int:
    """Numbers of one row of all observations."""
    return sum(int(np.prod(leaf.shape)) for leaf in spec.obs.values())


def _cheapest(
    config: Config, spec: EnvSpec, work: str, batches: Sequence[int], threads: Sequence[int], seconds: float
) -> Cost:
    """The lowest core time per row of a method of PlainTorch, over batch sizes, threads, layouts and precisions."""
    plain = plain_network(config, spec) is not None
    pictures = plain and any(len(leaf.shape) == 3 for leaf in spec.obs.values())
    layouts = (torch.contiguous_format, torch.channels_last) if pictures else (torch.contiguous_format,)
    tries = list(itertools.product(threads, layouts, _precisions(config), batches))
    best = Cost(float("inf"), "")
    for (count, layout), settings in itertools.groupby(tries, lambda one: one[:2]):
        torch.set_num_threads(count)
        loop = getattr(PlainTorch(config, spec, max(batches), layout), work)
        for _, _, half, rows in settings:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                wall = median_rate(partial(loop, rows), seconds / len(tries), 1.5 * best.seconds / count)
            if wall * count < best.seconds:
                how = f"{_name(half)}, batches of {rows}, {count} thread{'s' * (count > 1)}"
                how += ", channels last" if layout is torch.channels_last else ""
                best = Cost(wall * count, how if plain else f"the network itself, {how}", wall)
    return best
