"""Which worker a newborn process becomes. Imports only what the role needs: a sampler never sees torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

from sfactory.checkpoint import CheckpointError
from sfactory.workers.birth import ENVIRONMENT_FAULT, REFUSED
from sfactory.workers.wiring import EVALUATOR, Plan, Shared, Wires
from sfactory.workers.worker import QueuePost


@dataclass(frozen=True)
class Role:
    """What a worker is told at birth."""

    plan: Plan
    queue: Any
    incarnation: int
    evaluated: int = 0
    """For the evaluator: trained steps of the policy that was evaluated last."""


def wires_from(fds: tuple[int, ...]) -> Wires:
    arena, mail, *bells = fds
    return Wires(arena, mail, tuple(zip(bells[::2], bells[1::2], strict=True)))


def fds_of(wires: Wires) -> tuple[int, ...]:
    return wires.arena, wires.mail, *(fd for pair in wires.bells for fd in pair)


def keep_memory() -> None:
    """Have malloc keep and reuse large blocks instead of mapping them anew at every update.

    A fresh mapping costs a page fault per 4 KiB, which made the backward pass of a ReLU over 17 MB 39 ms instead of 5,
    and an update of 4,096 MinAtar samples 20 % slower (2 cores, benchmarks/LOG.md).
    """
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


def play(name: str, fds: tuple[int, ...], role: Role) -> int:
    """Live a worker's life; returns the exit code."""
    if name == EVALUATOR:
        return _evaluate(role)
    shared = Shared(role.plan, wires_from(fds))
    post = QueuePost(role.queue)
    run = role.plan.config.run
    if name in ("learner", "inference"):
        keep_memory()
    if name == "learner":
        import torch

        from sfactory.workers.learner import Learner

        torch.set_num_threads(1)  # its threads share rows, not operations (`workers.crew`)
        try:
            learner = Learner(shared, post)
        except CheckpointError as error:
            print(error, file=sys.stderr)
            return REFUSED
        learner.run()
        learner.leave()
    elif name == "inference":
        import torch

        from sfactory.workers.inference import Inference

        torch.set_num_threads(run.inference_threads)
        Inference(shared, post).run()
    else:
        return _sample(name, shared, post, role)
    return 0


def _evaluate(role: Role) -> int:
    os.nice(19)  # before any heavy import: what it takes, it takes from idle cores
    _offer_to_oom_killer(1000)
    import torch

    from sfactory.workers.evaluator import Evaluation

    torch.set_num_threads(1)
    Evaluation(role.plan, QueuePost(role.queue), role.evaluated).run()
    return 0


def _offer_to_oom_killer(score: int) -> None:
    """When memory runs out the kernel takes the highest score: whoever can be born again offers itself."""
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(score))


def _sample(name: str, shared: Shared, post: QueuePost, role: Role) -> int:
    from sfactory.workers.sampler import Sampler

    _offer_to_oom_killer(500)
    try:
        sampler = Sampler(int(name.removeprefix("sampler-")), shared, post, role.incarnation)
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ENVIRONMENT_FAULT
    sampler.run()
    sampler.flush()
    sampler.close()
    return 0
