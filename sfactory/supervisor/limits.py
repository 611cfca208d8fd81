"""Limits of the machine, its containers and this user, compared with what a run needs at least.

Checked before the run's folder is made: a run that cannot work is refused with the numbers, and leaves nothing. The
needs are lower bounds, so that nothing is refused that could work.
"""

from __future__ import annotations

import resource
from typing import NamedTuple

from sfactory.errors import CommandError, Exit
from sfactory.files import MiB
from sfactory.learning.batch_fields import kept_bytes, replay_bytes
from sfactory.shm.arena import arena_bytes
from sfactory.shm.control_groups import free_memory, free_processes
from sfactory.supervisor.cores import on_gpu
from sfactory.workers.names import SAMPLER, parse_worker
from sfactory.workers.shared import RunSpec

FDS_PER_WORKER, FDS_OF_OUR_OWN = 16, 64
"""File descriptors: pipes of doorbell, queue and spawn, sentinel and pidfd per worker; files and libraries."""
TASKS_PER_WORKER, TASKS_OF_OUR_OWN = 3, 4
"""Processes and threads: worker, reaper and telemetry per worker; supervisor, its helpers, the end of orphans."""
SAMPLER_MIB, NETWORK_MIB = 20, 90
"""Memory of a sampler, which does not import torch, and of a worker that does, without any data."""
FILE_MIB = 16
"""Size of the largest file of a small run: log files, telemetry, checkpoints."""


class Held(NamedTuple):
    """Batches in the memory of the learner besides the one it trains on."""

    bytes: int
    what: str
    flags: str
    """Settings that make it less, each with a comma."""


NOTHING_HELD = Held(0, "", "")


def check_limits(run_spec: RunSpec) -> None:
    """Raise soft limits to what a run needs. CommandError (exit 11) if something is too small for it."""
    lockstep, names = run_spec.config.run.mode == "lockstep", run_spec.workers
    samplers = sum(parse_worker(name).kind == SAMPLER for name in names)
    evaluators, spares = int(bool(run_spec.config.eval.every)), 1  # a spare of inference, see `spares.py`
    processes = 1 if lockstep else len(names) + evaluators
    arena, config = arena_bytes(run_spec.layout()), run_spec.config
    replay = replay_bytes(config, run_spec.schema, run_spec.spec.acting)
    check_file_size(arena + replay * (lockstep and config.checkpoint.exact))
    check_descriptors(len(names) + evaluators + spares)  # in lockstep too every worker has a doorbell
    check_processes(processes)
    without_torch = 0 if lockstep else samplers
    networks = 1 if lockstep else len(names) - samplers
    workers = without_torch * SAMPLER_MIB * MiB + networks * NETWORK_MIB * MiB
    held = Held(replay, "the slots held for replay", "replay.max-age, replay.ratio, ")
    if kept := kept_bytes(config, run_spec.schema):
        held = Held(kept, "the batches kept for an auxiliary phase", "ppg.policy-updates, ")
    check_memory(workers, arena, NOTHING_HELD if on_gpu(config.run.device) else held)


def check_descriptors(workers: int) -> None:
    """Raise the soft limit of file descriptors to the number the run needs. CommandError if it cannot."""
    need = FDS_OF_OUR_OWN + FDS_PER_WORKER * workers
    if (limit := _raise_soft(resource.RLIMIT_NOFILE, need)) is not None:
        raise CommandError(
            Exit.RESOURCES,
            f"{workers} workers need about {need} file descriptors, the limit is {limit}; raise it (ulimit -Hn {need}) "
            "or lower sampling.num-samplers",
        )


def check_file_size(largest: int) -> None:
    """Raise the soft limit of file sizes to the largest file a run needs. CommandError if it cannot."""
    need = max(largest, FILE_MIB * MiB)
    if (limit := _raise_soft(resource.RLIMIT_FSIZE, need)) is not None:
        raise CommandError(
            Exit.RESOURCES,
            f"a run writes files of {need / MiB:.0f} MiB, the limit of file sizes is {limit / MiB:.3g} MiB; raise it "
            "(ulimit -Hf unlimited)",
        )


def check_processes(workers: int) -> None:
    """CommandError if this user or a control group may not start as many processes as the run needs."""
    need = TASKS_OF_OUR_OWN + TASKS_PER_WORKER * workers
    _raise_soft(resource.RLIMIT_NPROC, need)
    free = free_processes()
    if need > free.number:
        raise CommandError(
            Exit.RESOURCES,
            f"{workers} workers need about {need} processes and threads, {free.text}; raise the limit or lower "
            "sampling.num-samplers",
        )


def check_memory(workers: int, arena: int, held: Held = NOTHING_HELD) -> None:
    """CommandError if the workers, the arena and what the learner holds need more bytes than are free."""
    free, need = free_memory(), workers + arena + held.bytes
    if need > free.bytes:
        also = f", {held.what} {held.bytes / MiB:.0f} MiB" if held.bytes else ""
        lower = held.flags if held.bytes else ""
        raise CommandError(
            Exit.RESOURCES,
            f"the workers need at least {workers / MiB:.0f} MiB and the trajectories {arena / MiB:.0f} MiB of memory"
            f"{also}, {free.text}; lower {lower}sampling.num-samplers, sampling.envs-per-group, "
            "sampling.rollout-length or sampling.slots-per-group",
        )


def _raise_soft(limit: int, need: int) -> int | None:
    """Raise a soft limit to `need`, as far as its hard limit allows; return the hard limit if it is too small."""
    soft, hard = resource.getrlimit(limit)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return None
    enough = hard == resource.RLIM_INFINITY or hard >= need
    resource.setrlimit(limit, (need if enough else hard, hard))
    return None if enough else hard
