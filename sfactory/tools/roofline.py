"""Measure the highest possible speed of this machine with reference loops outside sfactory's own code.

The cost of a stage is core time per agent step. The environment is its own library stepped in a plain loop; the network
is written here again in plain torch, forward and backward at the batch size, number of threads and memory format with
the lowest cost. A slower sfactory therefore cannot raise its share. The additive roofline of N cores is N / (sum of the
costs): no order of work on them can be faster without making a stage cheaper. If a GPU computes the network, the
roofline is the environment on all cores.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfactory.config import Config
from sfactory.envs import EnvSpec, Group, make_group, raw_loop
from sfactory.learning.network import build_model
from sfactory.model.encoders import ACTIVATIONS, auto

BATCHES = {"nature": (32, 128, 512), "impala": (32, 128, 512)}
DEFAULT_BATCHES = (128, 512, 2048)  # rows per batch that are tried for every other network
SMALL_GROUP = 8  # environments whose state fits into any cache
ACT_BATCHES = (64, 256)  # inference computes whole groups: at least 64 environments
REPEATS = 3


class Cost(NamedTuple):
    """The core time of one stage."""

    seconds: float
    """Core seconds per agent step."""
    how: str
    """The loop and the settings it was measured with."""


class Roofline(NamedTuple):
    """The costs of a workload and the speed they allow."""

    cores: int
    environment: Cost
    inference: Cost
    training: Cost
    passes: str
    """The passes per trained step: forward and backward passes, plus a forward pass before the first epoch."""
    device: str

    @property
    def seconds(self) -> float:
        """Core time of one step, over all stages that run on the CPU."""
        on_cores = (self.environment,) if self.device != "cpu" else (self.environment, self.inference, self.training)
        return sum(cost.seconds for cost in on_cores)

    @property
    def steps_per_second(self) -> float:
        return self.cores / self.seconds


def amx() -> bool:
    """Return whether the CPU multiplies bf16 matrices in hardware; otherwise bf16 is not in the roofline."""
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def roofline(config: Config, spec: EnvSpec, cores: int, device: str = "cpu", seconds: float = 6.0) -> Roofline:
    """Measure all reference loops in about `seconds`, one after the other."""
    steps = config.optimizer_steps_per_update
    environment = environment_cost(config, seconds / 4)
    if device != "cpu":
        nothing = Cost(0.0, f"on the device ({device}), no CPU time")
        return Roofline(cores, environment, nothing, nothing, "", device)
    before = torch.get_num_threads()
    bf16 = config.run.precision == "bf16" and amx()
    try:
        forward = list(_network_costs(config, spec, ACT_BATCHES, cores, seconds / 4, backward=False, bf16=bf16))
        forward_backward = list(
            _network_costs(config, spec, _batches(config, spec), cores, seconds / 2, backward=True, bf16=bf16)
        )
    finally:
        torch.set_num_threads(before)
    inference, update = min(forward), min(forward_backward)
    extra = 0 if steps == 1 else 1  # several optimizer steps: one forward pass over the batch before the first
    training = Cost(config.batch.epochs * update.seconds + extra * inference.seconds, update.how)
    passes = f"{config.batch.epochs} x forward and backward{' + 1 forward' if extra else ''}"
    return Roofline(cores, environment, inference, training, passes, device)


def environment_cost(config: Config, seconds: float) -> Cost:
    """Measure one agent step in the environment's own library, as a mean over tasks.

    The cheaper of two group sizes counts, the configured one and a small one: large groups may exceed the cache.
    """
    env, many = config.env, config.sampling.envs_per_group
    sizes = sorted({min(SMALL_GROUP, many), many})
    costs = {size: 0.0 for size in sizes}
    for size, task in itertools.product(sizes, env.tasks):
        step, how = raw_loop(task, size, 1, env.arguments), "its library alone"
        if step is None:
            group = make_group(task, size, list(range(1, size + 1)), env.arguments)
            step, how = random_steps(group), "through sfactory's group; its family has no plain loop"
        costs[size] += best_rate(step, seconds / len(sizes) / len(env.tasks)) / len(env.tasks)
    best = min(sizes, key=costs.__getitem__)
    return Cost(costs[best], f"{how}, {best} environments")


def random_steps(group: Group) -> Callable[[], int]:
    """Return a function that steps the group with random actions and returns its number of environments."""
    size = group.num_envs
    group.reset()
    generator = np.random.default_rng(1)
    actions = [
        {
            name: generator.random((size, *leaf.shape), dtype=np.float32) - 0.5
            if leaf.kind == "box"
            else generator.integers(np.broadcast_to(np.asarray(leaf.sizes).reshape(leaf.shape), (size, *leaf.shape)))
            for name, leaf in group.spec.actions.items()
        }
        for _ in range(64)
    ]
    counter = itertools.count()

    def step() -> int:
        group.step(actions[next(counter) % 64])
        return size

    return step


def best_rate(step: Callable[[], int], seconds: float, give_up: float = float("inf")) -> float:
    """Return seconds per step in the best of REPEATS intervals: other processes can only make it slower.

    give_up: if the second call takes longer than this per step, its time is returned without further measurement.
    """
    step()
    start = time.perf_counter()
    count = step()
    if (once := (time.perf_counter() - start) / count) > give_up:
        return once
    rates = []
    for _ in range(REPEATS):
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds / REPEATS:
            count += step()
        rates.append(elapsed / count)
    return min(rates)


# -- networks ----------------------------------------------------------------------------------------------------


def _batches(config: Config, spec: EnvSpec) -> tuple[int, ...]:
    (leaf, *_) = spec.obs.values()
    encoder = auto(leaf.shape) if config.model.encoder == "auto" else config.model.encoder
    return BATCHES.get(encoder, DEFAULT_BATCHES)


def plain_network(config: Config, spec: EnvSpec) -> nn.Module | None:
    """Build the same layers in plain torch: observation [N, ...] -> [N, parameters + 1].

    Returns None if there is no plain form (several observations, a recurrent core, a mask, a custom encoder or
    IMPALA's): the network itself is the reference then.
    """
    model = config.model
    if len(spec.obs) != 1 or model.core != "none" or spec.mask:
        return None
    (leaf,) = spec.obs.values()
    encoder = auto(leaf.shape) if model.encoder == "auto" and len(leaf.shape) == 3 else model.encoder
    encoder = encoder if len(leaf.shape) == 3 else "mlp"
    outputs = sum(sum(action.sizes) for action in spec.actions.values())
    activation = ACTIVATIONS[model.activation]
    if encoder == "minatar":
        channels = leaf.shape[2]
        size = 16 * (leaf.shape[0] - 2) * (leaf.shape[1] - 2)
        front: list[nn.Module] = [nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten()]
    elif encoder == "nature":
        convs = [nn.Conv2d(leaf.shape[0], 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
        front = [layer for conv in convs for layer in (conv, nn.ReLU())] + [nn.Flatten()]
        size = nn.Sequential(*front)(torch.zeros(1, *leaf.shape)).shape[1]
    elif encoder == "mlp":
        front, size = [nn.Flatten()], int(np.prod(leaf.shape))
    else:
        return None

    def trunk(head: int) -> nn.Sequential:
        widths = [size, *model.hidden]
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), activation())]
        return nn.Sequential(*layers, nn.Linear(widths[-1], head))

    if not model.separate:
        return nn.Sequential(*front, trunk(outputs + 1))
    return _ActorAndCritic(nn.Sequential(*front, trunk(outputs)), nn.Sequential(*front, trunk(1)))


class _ActorAndCritic(nn.Module):
    """Separate actor and critic networks, outputs concatenated."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], -1)


def _network_costs(
    config: Config, spec: EnvSpec, batches: tuple[int, ...], cores: int, seconds: float, *, backward: bool, bf16: bool
) -> Iterator[Cost]:
    """Yield core time per row of forward (and backward) passes for threads, layouts, precisions and batch sizes."""
    (leaf, *_) = spec.obs.values()
    network = plain_network(config, spec)
    layouts = (torch.contiguous_format, torch.channels_last) if len(leaf.shape) == 3 and network else (None,)
    precisions = (False, True) if bf16 else (False,)
    threads = sorted({1, cores})
    tries, best = len(layouts) * len(precisions) * len(threads) * len(batches), float("inf")
    for count in threads:
        torch.set_num_threads(count)
        for layout in layouts:
            step = _pass(config, spec, network, layout, max(batches), backward)
            for half in precisions:
                for rows in batches:
                    with torch.autocast("cpu", torch.bfloat16, enabled=half):
                        call: Callable[[], int] = partial(step, rows)
                        spent = best_rate(call, seconds / tries, 1.5 * best / count)
                    best = min(best, spent * count)
                    how = f"{'bf16' if half else 'fp32'}, batches of {rows}, {count} thread{'s' * (count > 1)}"
                    if layout is torch.channels_last:
                        how += ", channels last"
                    yield Cost(spent * count, how if network is not None else f"the network itself, {how}")


def _pass(
    config: Config,
    spec: EnvSpec,
    network: nn.Module | None,
    layout: torch.memory_format | None,
    max_rows: int,
    backward: bool,
) -> Callable[[int], int]:
    """Return a function (rows) -> rows: a forward pass of at most `max_rows`, and a backward pass if `backward`."""
    own = build_model(config, spec) if network is None else None
    if network is not None and layout is not None:
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
    generator = np.random.default_rng(1)
    inputs = {
        name: torch.from_numpy(generator.integers(0, 2, (max_rows, *leaf.shape)).astype(leaf.dtype))
        for name, leaf in spec.obs.items()
    }
    name, leaf = next(iter(spec.obs.items()))
    hwc = len(leaf.shape) == 3 and (config.model.encoder == "minatar" or auto(leaf.shape) == "minatar")

    def forward(rows: int) -> Tensor:
        if own is not None:
            out = own({key: x[:rows] for key, x in inputs.items()})
            return out.params.sum() + out.value.sum()
        x = inputs[name][:rows].float()
        if hwc:
            x = x.permute(0, 3, 1, 2)
        if layout is not None:
            x = x.contiguous(memory_format=layout)
        assert network is not None
        return network(x).sum()

    def step(rows: int) -> int:
        if not backward:
            with torch.inference_mode():
                forward(rows)
            return rows
        (own or network).zero_grad(set_to_none=True)  # type: ignore[union-attr]
        forward(rows).backward()
        return rows

    return step
