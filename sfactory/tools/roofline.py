"""What this machine could do at the most: the cost of each stage in loops that are none of sfactory's own code.

A stage's cost is core time per agent step. The environment is its own library stepped in the plainest loop; the network
is written here once more in plain torch, forward and backward at the batch, the number of threads and the memory
format that cost least. So a slower sfactory cannot raise its share. The additive roofline of N cores is N / (sum of the
costs): no order of work on them can be faster without making a stage cheaper. Where a GPU computes the network, the
environment on all cores is the roofline.
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
FEW = (128, 512, 2048)  # rows per batch tried for every other network
FEW_ENVS = 8  # environments of a plain loop that fit into any cache
ACT_BATCHES = (64, 256)  # inference answers whole groups: at least 64 environments
REPEATS = 3


class Cost(NamedTuple):
    """Core time of one stage."""

    seconds: float
    """Per agent step, on one core."""
    how: str
    """Of what loop, at which settings."""


class Roofline(NamedTuple):
    """The costs of a workload, and the speed they allow."""

    cores: int
    environment: Cost
    inference: Cost
    training: Cost
    passes: str
    """What training one step takes: forward passes to look, forward and backward passes to learn."""
    device: str

    @property
    def seconds(self) -> float:
        """Core time of one step, all stages that run on the cores."""
        on_cores = (self.environment,) if self.device != "cpu" else (self.environment, self.inference, self.training)
        return sum(cost.seconds for cost in on_cores)

    @property
    def steps_per_second(self) -> float:
        return self.cores / self.seconds


def amx() -> bool:
    """This CPU multiplies bf16 matrices in hardware: only then does bf16 count for the roofline."""
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def roofline(config: Config, spec: EnvSpec, cores: int, device: str = "cpu", seconds: float = 6.0) -> Roofline:
    """Measure all reference loops, in about `seconds`, on one core after the other."""
    steps = config.optimizer_steps_per_update
    environment = environment_cost(config, seconds / 4)
    if device != "cpu":
        nothing = Cost(0.0, f"on the device ({device}): no core's time")
        return Roofline(cores, environment, nothing, nothing, "", device)
    before = torch.get_num_threads()
    bf16 = config.run.precision == "bf16" and amx()
    try:
        looks = list(_network_costs(config, spec, ACT_BATCHES, cores, seconds / 4, learn=False, bf16=bf16))
        learns = list(_network_costs(config, spec, _batches(config, spec), cores, seconds / 2, learn=True, bf16=bf16))
    finally:
        torch.set_num_threads(before)
    look, learn = min(looks), min(learns)
    extra = 0 if steps == 1 else 1  # several optimizer steps: one look at the whole batch before the first
    training = Cost(config.batch.epochs * learn.seconds + extra * look.seconds, learn.how)
    passes = f"{config.batch.epochs} x forward and backward{' + 1 forward' if extra else ''}"
    return Roofline(cores, environment, look, training, passes, device)


def environment_cost(config: Config, seconds: float) -> Cost:
    """Core time of one agent step in the environment's own library, with as many as a group has or with few, whichever
    costs less: many may fall out of the cache. The mean over several tasks."""
    env, many = config.env, config.sampling.envs_per_group
    sizes = sorted({min(FEW_ENVS, many), many})
    costs = {size: 0.0 for size in sizes}
    for size, task in itertools.product(sizes, env.tasks):
        step, how = raw_loop(task, size, 1, env.arguments), "its library alone"
        if step is None:
            group = make_group(task, size, list(range(1, size + 1)), env.arguments)
            step, how = random_steps(group), "sfactory's own door, its family has no plainer loop"
        costs[size] += best_rate(step, seconds / len(sizes) / len(env.tasks)) / len(env.tasks)
    best = min(sizes, key=costs.__getitem__)
    return Cost(costs[best], f"{how}, {best} environments")


def random_steps(group: Group) -> Callable[[], int]:
    """A function that steps the group with random actions and returns how many environments it has."""
    size = group.num_envs
    group.reset()
    draws = np.random.default_rng(1)
    actions = [
        {
            name: draws.random((size, *leaf.shape), dtype=np.float32) - 0.5
            if leaf.kind == "box"
            else draws.integers(np.broadcast_to(np.asarray(leaf.sizes).reshape(leaf.shape), (size, *leaf.shape)))
            for name, leaf in group.spec.actions.items()
        }
        for _ in range(64)
    ]
    turn = itertools.count()

    def step() -> int:
        group.step(actions[next(turn) % 64])
        return size

    return step


def best_rate(step: Callable[[], int], seconds: float, hopeless: float = float("inf")) -> float:
    """Seconds per step of the best of a few stretches: whoever else uses the machine can only slow it.

    hopeless: when the second call takes that long, it is not looked at more closely.
    """
    step()
    began = time.perf_counter()
    count = step()
    if (once := (time.perf_counter() - began) / count) > hopeless:
        return once
    found = []
    for _ in range(REPEATS):
        count, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds / REPEATS:
            count += step()
        found.append(passed / count)
    return min(found)


# -- networks ----------------------------------------------------------------------------------------------------


def _batches(config: Config, spec: EnvSpec) -> tuple[int, ...]:
    (leaf, *_) = spec.obs.values()
    picked = auto(leaf.shape) if config.model.encoder == "auto" else config.model.encoder
    return BATCHES.get(picked, FEW)


def plain_network(config: Config, spec: EnvSpec) -> nn.Module | None:
    """The same layers in plain torch: observation [N, ...] -> [N, parameters + 1]. None where there is no plain form
    (several observations, memory, an encoder of one's own or IMPALA's): then the network itself is the reference."""
    model = config.model
    if len(spec.obs) != 1 or model.core != "none" or spec.mask:
        return None
    (leaf,) = spec.obs.values()
    picked = auto(leaf.shape) if model.encoder == "auto" and len(leaf.shape) == 3 else model.encoder
    picked = picked if len(leaf.shape) == 3 else "mlp"
    outputs = sum(sum(action.sizes) for action in spec.actions.values())
    activation = ACTIVATIONS[model.activation]
    if picked == "minatar":
        channels = leaf.shape[2]
        size = 16 * (leaf.shape[0] - 2) * (leaf.shape[1] - 2)
        front: list[nn.Module] = [nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten()]
    elif picked == "nature":
        convs = [nn.Conv2d(leaf.shape[0], 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)]
        front = [layer for conv in convs for layer in (conv, nn.ReLU())] + [nn.Flatten()]
        size = nn.Sequential(*front)(torch.zeros(1, *leaf.shape)).shape[1]
    elif picked == "mlp":
        front, size = [nn.Flatten()], int(np.prod(leaf.shape))
    else:
        return None

    def trunk(head: int) -> nn.Sequential:
        widths = [size, *model.hidden]
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), activation())]
        return nn.Sequential(*layers, nn.Linear(widths[-1], head))

    if not model.separate:
        return nn.Sequential(*front, trunk(outputs + 1))
    return _Both(nn.Sequential(*front, trunk(outputs)), nn.Sequential(*front, trunk(1)))


class _Both(nn.Module):
    """Actor and critic side by side."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], -1)


def _network_costs(
    config: Config, spec: EnvSpec, batches: tuple[int, ...], cores: int, seconds: float, *, learn: bool, bf16: bool
) -> Iterator[Cost]:
    """Core time per row of forward (and backward) passes at every combination worth a try."""
    (leaf, *_) = spec.obs.values()
    network = plain_network(config, spec)
    layouts = (torch.contiguous_format, torch.channels_last) if len(leaf.shape) == 3 and network else (None,)
    precisions = (False, True) if bf16 else (False,)
    threads = sorted({1, cores})
    tries, best = len(layouts) * len(precisions) * len(threads) * len(batches), float("inf")
    for count in threads:
        torch.set_num_threads(count)
        for layout in layouts:
            step = _pass(config, spec, network, layout, max(batches), learn)
            for half in precisions:
                for rows in batches:
                    with torch.autocast("cpu", torch.bfloat16, enabled=half):
                        call: Callable[[], int] = partial(step, rows)
                        spent = best_rate(call, seconds / tries, 1.5 * best / count)
                    best = min(best, spent * count)
                    said = f"{'bf16' if half else 'fp32'}, batches of {rows}, {count} thread{'s' * (count > 1)}"
                    if layout is torch.channels_last:
                        said += ", channels last"
                    yield Cost(spent * count, said if network is not None else f"the network itself, {said}")


def _pass(
    config: Config, spec: EnvSpec, network: nn.Module | None, layout: torch.memory_format | None, most: int, learn: bool
) -> Callable[[int], int]:
    """A function (rows) -> rows that passes so many, `most` at most, forward, and backward if `learn`."""
    own = build_model(config, spec) if network is None else None
    if network is not None and layout is not None:
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
    draws = np.random.default_rng(1)
    inputs = {
        name: torch.from_numpy(draws.integers(0, 2, (most, *leaf.shape)).astype(leaf.dtype))
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
        if not learn:
            with torch.inference_mode():
                forward(rows)
            return rows
        (own or network).zero_grad(set_to_none=True)  # type: ignore[union-attr]
        forward(rows).backward()
        return rows

    return step
