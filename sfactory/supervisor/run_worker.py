"""Run a worker by name in this process. Imports only what that worker needs: a sampler never imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfactory.device.loading import loading_torch
from sfactory.device.machine import numa_nodes
from sfactory.envs.spec import LONGEST_TRACE
from sfactory.errors import CheckpointError, Exit, LearnerLost, SettingError, one_line, shortened
from sfactory.monitor.messages import FAULT
from sfactory.supervisor.affinity import pin
from sfactory.workers.names import EVALUATOR, INFERENCE, LEARNER, inference_name, parse_worker, sampler_name
from sfactory.workers.shared import RunSpec, SharedHandles, SharedState, StopOrder
from sfactory.workers.worker import QueueSink

SPARE_POLL_S = 0.02  # between two looks of a spare at whether it is in charge


@dataclass(frozen=True)
class WorkerArgs:
    """Arguments of a worker process."""

    run_spec: RunSpec
    queue: Any
    """Telemetry queue."""
    generation: int
    """How often this worker was restarted."""
    evaluated: int = 0
    """For the evaluator: trained steps of the policy that was evaluated last."""

    def run(self, name: str, fds: tuple[int, ...]) -> int:
        """See `child_main.Task`."""
        return run_worker(name, fds, self)


def handles_from_fds(fds: tuple[int, ...]) -> SharedHandles:
    """The inverse of `fds_of_handles`."""
    arena, mail, episodes, *bells = fds
    return SharedHandles(arena, mail, episodes, tuple(zip(bells[::2], bells[1::2], strict=True)))


def fds_of_handles(handles: SharedHandles) -> tuple[int, ...]:
    """All descriptors as one flat tuple."""
    return handles.arena, handles.mail, handles.episodes, *(fd for pair in handles.bells for fd in pair)


def keep_memory() -> None:
    """Make malloc keep and reuse large blocks instead of mapping them again at every update.

    A new mapping costs a page fault per 4 KiB, which made the backward pass of a ReLU over 17 MB 39 ms instead of 5 and
    an update of 4,096 MinAtar samples 20 % slower (2 cores, benchmarks/LOG.md).
    """
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


def run_worker(name: str, fds: tuple[int, ...], args: WorkerArgs) -> int:
    """Run a worker until it exits; return the exit code."""
    kind, index = parse_worker(name)
    if kind == EVALUATOR:
        return _run_evaluator(index, args)
    pin(name, args.run_spec, numa_nodes())  # first: threads inherit it
    shared = SharedState(args.run_spec, handles_from_fds(fds))
    sink = QueueSink(args.queue)
    if kind == LEARNER:
        return _run_learner(index, shared, sink)
    if kind == INFERENCE:
        return _run_inference(index, shared, sink, args.generation)
    return _run_sampler(index, shared, sink, args.generation)


def _run_learner(policy: int, shared: SharedState, sink: QueueSink) -> int:
    keep_memory()
    with loading_torch(frozen=True):
        import torch

        from sfactory.workers.learner import Learner

    torch.set_num_threads(1)  # its own thread pool splits rows, not operations
    try:
        try:
            learner = Learner(shared, sink, policy)
        except CheckpointError as error:
            print(error, file=sys.stderr)
            return Exit.RESUME_REFUSED
        except SettingError as error:  # about a network, or other learners, that only the learner can see
            print(error, file=sys.stderr)
            return Exit.USAGE
        learner.run()
        learner.leave()
    except LearnerLost as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _run_inference(number: int, shared: SharedState, sink: QueueSink, generation: int) -> int:
    keep_memory()
    with loading_torch(frozen=True):
        import torch

        from sfactory.workers.inference import Inference

    torch.set_num_threads(shared.run_spec.config.run.inference_threads)
    if not _in_charge(inference_name(number), shared, generation):
        return 0
    Inference(shared, sink, number=number).run()
    return 0


def _in_charge(name: str, shared: SharedState, generation: int) -> bool:
    """Wait, as a spare, until this generation may work; False if the run ends before."""
    row = shared.run_spec.workers.index(name)
    if shared.in_charge[row] != generation:
        with _killed_first():
            while shared.in_charge[row] != generation and shared.supervisor.stop == StopOrder.RUN:
                time.sleep(SPARE_POLL_S)
    return bool(shared.in_charge[row] == generation)


def _run_sampler(index: int, shared: SharedState, sink: QueueSink, generation: int) -> int:
    from sfactory.workers.sampler import Sampler

    _set_oom_score(500)
    try:
        sampler = Sampler(index, shared, sink, generation)
    except BaseException as error:  # a constructor may also call sys.exit
        traceback.print_exc()
        line = one_line(error)
        print(line, file=sys.stderr)
        trace = shortened("".join(traceback.format_exception(error.__cause__ or error)), LONGEST_TRACE)
        sink.put((FAULT, sampler_name(index), f"{sampler_name(index)}: {line}\n{trace}"))
        return Exit.ENVIRONMENT
    sampler.run()
    sampler.flush()
    sampler.close()
    return 0


def _run_evaluator(policy: int, args: WorkerArgs) -> int:
    _set_oom_score(1000)
    with loading_torch(frozen=True):
        import torch

        from sfactory.workers.evaluator import Evaluator

    torch.set_num_threads(1)
    evaluator = Evaluator(args.run_spec, QueueSink(args.queue), args.evaluated, policy, args.generation)
    # From here on it uses idle cores only. Not before: where no core is idle, starting would take minutes.
    os.nice(19)
    evaluator.run()
    return 0


OOM_SCORE = Path("/proc/self/oom_score_adj")


def _set_oom_score(score: int) -> None:
    """When memory runs out the kernel kills the highest score first: workers that can be restarted have one."""
    with contextlib.suppress(OSError):  # another system, or /proc cannot be written
        OOM_SCORE.write_text(str(score))


@contextlib.contextmanager
def _killed_first() -> Iterator[None]:
    """Have the highest score, for a time."""
    before = 0
    with contextlib.suppress(OSError):
        before = int(OOM_SCORE.read_text())
    _set_oom_score(1000)
    try:
        yield
    finally:
        _set_oom_score(before)
