"""Divide the cores of a machine: how many samplers and inference workers a run has.

`sampling.num_samplers 0` and `run.inference_workers 0` leave both numbers to this module; they are settled before a run
starts and kept when it is resumed. The environments, the rows of an update and its minibatches stay the same: only the
number of processes that share them depends on the machine. What the cores are used for, in this order:

    learner      on the CPU its threads, at most half of the cores and one per 128 rows of a minibatch; with a GPU one
    inference    one worker, or several where `inference_workers` says that one is too slow
    samplers     the rest, at least `sampling.min_samplers`, which then share cores with the others

The number of samplers divides the environments of a group and leaves at least MIN_GROUP in each. Lockstep, which must
not depend on the machine, and `batch.slots`, which counts slots of one size, have one sampler.
"""

from __future__ import annotations

import math

from sfactory.config import Config, with_settings
from sfactory.device.machine import shows_gpu
from sfactory.device.ranks import Ranks
from sfactory.workers.names import INFERENCE, LEARNER, parse_worker

MIN_GROUP = 4
"""Environments of the smallest group. The hand-over of a group costs about 30 us whatever its size (in the sampler and
in inference; benchmarks/results/scaling.md): with four environments, 8 us per step."""
LEARNER_THREADS = 4
"""Threads of the learner with run.learner_threads 0, where the machine has as many cores."""
ROWS_PER_THREAD = 128
"""Rows of a minibatch for each thread of the learner. Images are divided more finely: two threads in any case."""
UPDATE_COST = 2
"""Time to learn from a row once, over its time in inference: a forward and a backward pass cost three forward passes,
but the small batches of inference take longer per row (benchmarks/results/scaling.md: 1 to 2)."""
SAMPLERS_PER_WORKER = 2
"""Samplers that one inference thread serves where the network is large (Atari: it saturates at two to three)."""


def on_gpu(device: str) -> bool:
    """Whether networks run on a GPU, as far as that is known without torch."""
    return device != "cpu" and shows_gpu()


def by_cores(config: Config, num_cores: int) -> Config:
    """Settle `num_samplers` and `inference_workers` where they are 0; other numbers are kept."""
    s = config.sampling
    samplers, groups = s.num_samplers or _num_samplers(config, num_cores), s.groups_per_sampler
    if not s.num_samplers and samplers < s.min_samplers and num_cores > 1 and not _has_one_sampler(config):
        if groups % s.min_samplers == 0:  # the same groups, each sampler with fewer of them
            samplers, groups = s.min_samplers, groups // s.min_samplers
        elif _divides(s.min_samplers, s.envs_per_group, config.batch.factor):
            samplers = s.min_samplers
    return with_settings(
        config,
        {
            "run.inference_workers": _num_inference(config, samplers, num_cores),
            "sampling.num_samplers": samplers,
            "sampling.groups_per_sampler": groups,
            "sampling.envs_per_group": s.num_envs // (samplers * groups),
        },
    )


def share_threads(config: Config, ranks: Ranks, num_cores: int) -> Config:
    """Settle the learner's threads where several ranks share a machine: it would use as many as there are cores."""
    if ranks.local_world_size == 1 or config.run.learner_threads:
        return config
    return with_settings(config, {"run.learner_threads": min(LEARNER_THREADS, num_cores)})


def worker_cores(config: Config, name: str, num_cores: int) -> int:
    """Cores that a worker keeps busy, at most."""
    kind = parse_worker(name).kind
    if kind == LEARNER:
        return _learner_cores(config, num_cores)
    if kind == INFERENCE and not on_gpu(config.run.inference_device or config.run.device):
        return config.run.inference_threads
    return 1


def summary(config: Config, num_cores: int) -> str:
    """One line about the processes of a run whose numbers are settled."""
    s, workers = config.sampling, config.run.inference_workers
    return (
        f"{_count(num_cores, 'core')}: {_count(s.num_samplers, 'sampler')} x {_count(s.groups_per_sampler, 'group')} x "
        f"{_count(s.envs_per_group, 'environment')}, {_count(workers, 'inference worker')}"
    )


def keep_processes(before: Config, config: Config) -> Config:
    """For a resume: numbers that `config` leaves open are those of the run, which `before` holds.

    Environments that differ from the run's are divided again by `by_cores`.
    """
    now, then = config.sampling, before.sampling
    kept: tuple[str, ...] = ()
    if not now.num_samplers and now.num_envs == then.num_envs:  # from the preset of the run
        kept = ("num_samplers", "groups_per_sampler", "envs_per_group")
    elif not now.num_samplers and now.envs_per_group == then.envs_per_group:  # from the settings of the run itself
        kept = ("num_samplers",)
    config = with_settings(config, {f"sampling.{name}": getattr(then, name) for name in kept})
    workers = config.run.inference_workers or min(before.run.inference_workers, config.sampling.samplers)
    return with_settings(config, {"run.inference_workers": workers})


def _has_one_sampler(config: Config) -> bool:
    return config.run.mode == "lockstep" or bool(config.batch.slots)


def _num_samplers(config: Config, num_cores: int) -> int:
    if _has_one_sampler(config):
        return 1
    size, inference_threads = config.sampling.envs_per_group, config.run.inference_threads
    free = num_cores - _learner_cores(config, num_cores)
    fitting = [
        samplers
        for samplers in range(2, size + 1)
        if _divides(samplers, size, config.batch.factor)
        and samplers + inference_threads * _num_inference(config, samplers, num_cores) <= free
    ]
    return max(fitting, default=1)


def _divides(samplers: int, size: int, factor: float) -> bool:
    """Whether groups of `size` can be divided among samplers, also after `batch.factor` has changed their size."""
    scaled = size / samplers / factor
    return size % samplers == 0 and scaled.is_integer() and min(size / samplers, scaled) >= MIN_GROUP


def _num_inference(config: Config, samplers: int, num_cores: int) -> int:
    """Number of inference workers for a number of samplers.

    On a CPU a row takes the learner UPDATE_COST x passes as long as inference, but the learner has several threads. One
    worker keeps up unless there are more threads than that, or the learner runs on a GPU.
    """
    run = config.run
    if run.mode == "lockstep":
        return run.inference_workers or 1
    if run.inference_workers:
        return min(run.inference_workers, samplers)
    if on_gpu(run.inference_device or run.device):
        return 1
    for_samplers = math.ceil(samplers / SAMPLERS_PER_WORKER)
    if on_gpu(run.device):
        return for_samplers
    passes = config.passes_over_batch * (1 + config.replay.ratio)
    return min(for_samplers, math.ceil(_learner_cores(config, num_cores) / (UPDATE_COST * passes)))


def _learner_cores(config: Config, num_cores: int) -> int:
    if on_gpu(config.run.device):
        return 1
    rows = config.trained_rows // config.batch.minibatches
    return max(1, min(config.run.learner_threads or LEARNER_THREADS, num_cores // 2, max(2, rows // ROWS_PER_THREAD)))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
