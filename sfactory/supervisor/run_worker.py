"""Which worker a newborn process becomes. Imports only what the args needs: a sampler never sees torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

from sfactory.errors import CheckpointError, Exit
from sfactory.workers.shared import EVALUATOR, RunSpec, SharedHandles, SharedState
from sfactory.workers.worker import QueueSink


@dataclass(frozen=True)
class WorkerArgs:
    """Arguments of a worker process."""

    run_spec: RunSpec
    queue: Any
    generation: int
    evaluated: int = 0
    """For the evaluator: trained steps of the policy that was evaluated last."""


def handles_from_fds(fds: tuple[int, ...]) -> SharedHandles:
    arena, mail, *bells = fds
    return SharedHandles(arena, mail, tuple(zip(bells[::2], bells[1::2], strict=True)))


def fds_of_handles(handles: SharedHandles) -> tuple[int, ...]:
    return handles.arena, handles.mail, *(fd for pair in handles.bells for fd in pair)


def keep_memory() -> None:
    """Have malloc keep and reuse large blocks instead of mapping them anew at every update.

    A fresh mapping costs a page fault per 4 KiB, which made the backward pass of a ReLU over 17 MB 39 ms instead of 5,
    and an update of 4,096 MinAtar samples 20 % slower (2 cores, benchmarks/LOG.md).
    """
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


def run_worker(name: str, fds: tuple[int, ...], args: WorkerArgs) -> int:
    """Live a worker's worker; returns the exit code."""
    if name == EVALUATOR:
        return _evaluate(args)
    shared = SharedState(args.run_spec, handles_from_fds(fds))
    sink = QueueSink(args.queue)
    run = args.run_spec.config.run
    if name in ("learner", "inference"):
        keep_memory()
    if name == "learner":
        import torch

        from sfactory.workers.learner import Learner

        torch.set_num_threads(1)  # its threads share rows, not operations (`workers.pool`)
        try:
            learner = Learner(shared, sink)
        except CheckpointError as error:
            print(error, file=sys.stderr)
            return Exit.RESUME_REFUSED
        learner.run()
        learner.leave()
    elif name == "inference":
        import torch

        from sfactory.workers.inference import Inference

        torch.set_num_threads(run.inference_threads)
        Inference(shared, sink).run()
    else:
        return _sample(name, shared, sink, args)
    return 0


def _evaluate(args: WorkerArgs) -> int:
    os.nice(19)  # before any heavy import: what it takes, it takes from idle cores
    _offer_to_oom_killer(1000)
    import torch

    from sfactory.workers.evaluator import Evaluator

    torch.set_num_threads(1)
    Evaluator(args.run_spec, QueueSink(args.queue), args.evaluated).run()
    return 0


def _offer_to_oom_killer(score: int) -> None:
    """When memory runs out the kernel takes the highest score: whoever can be born again offers itself."""
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))


def _sample(name: str, shared: SharedState, sink: QueueSink, args: WorkerArgs) -> int:
    from sfactory.workers.sampler import Sampler

    _offer_to_oom_killer(500)
    try:
        sampler = Sampler(int(name.removeprefix("sampler-")), shared, sink, args.generation)
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return Exit.ENVIRONMENT
    sampler.run()
    sampler.flush()
    sampler.close()
    return 0
