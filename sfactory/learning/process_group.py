"""Several learners over torch.distributed: gloo on CPUs, NCCL on GPUs.

One all-reduce per optimizer step carries a flat vector, all of it sums over learners:

    gradient times valid rows     [size]
    valid rows of the minibatch   []
    counts of the update          [2 * C]   as proposed, 12 bits in each element, so that the sum in float32 is exact
    votes                         [V]       learners that want a save, and that propose each outcome
    metrics times valid rows      [M]       of steps that have a report
    numbers of joint metrics      [W * J]   the same: every learner writes its own numbers; the others are 0
    numbers                       [4 * K]   the same, of steps that have a report: 16 bits in each element, so that the
                                            sum in float32 is exact

A learner that waits for others looks once a second whether they live. Every learner has a thread that counts up in the
store of the job, and says whether the learner is waiting itself; a process that is stopped or gone does not count.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sfactory.device.ranks import Ranks
from sfactory.errors import Exit, LearnerLost, LearnersDiffer, SettingError
from sfactory.learning.distributed import BatchMoments, Counts, Joint, Vote

REPORT_S = 10.0
"""After which a learner says that it waits for the others to come."""
JOIN_S = 300.0
"""For all learners to come: their packages are loaded meanwhile, and the environments' specs read."""
LOOK_S = 1.0
"""Between two looks at the others while waiting, and between two signs of life."""
SILENT_SHARE = 0.9
"""Of the stall timeout without a sign of life: the learner says who is silent before a supervisor finds a stall."""
LONGEST_WAIT = timedelta(days=1)
"""Of one collective over gloo, while all learners live."""
OUTCOMES = 8
"""Values of `Vote.outcome`, 0 among them."""
COUNTS = 2 * len(Counts._fields)
"""Numbers in a message that hold the counts of the update."""
DIGIT = 2**12
"""A count is a number of these, and the rest: sums over 4,096 learners stay below 2^24, where float32 is exact."""
NOTES = COUNTS + 1 + OUTCOMES
"""Numbers in a message besides gradients and metrics: counts of the update, save, and each outcome."""


class ProcessGroup:
    """One learner of several; see `distributed.Learners` for the meaning of everything."""

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        store: Any,
        stall_timeout: float,
        alive: Callable[[Sequence[int]], None],
    ) -> None:
        self.ranks, self.device, self.store, self.alive = ranks, device, store, alive
        self.world_size, self.is_leader = ranks.world_size, ranks.is_leader
        self.recordable = dist.get_backend() == "nccl"
        self._notes = torch.zeros(NOTES, dtype=torch.float64, device=device)  # of this learner
        self._agreed = torch.zeros(NOTES, dtype=torch.float64, device=device)  # sums over learners
        self._numbers = self._all_numbers = torch.zeros(0, device=device)  # packed; of this learner, and the sum
        self._messages: dict[int, Tensor] = {}
        self._signs = SignsOfLife(ranks, store, SILENT_SHARE * stall_timeout)

    @classmethod
    def join(
        cls,
        ranks: Ranks,
        device: torch.device,
        stall_timeout: float,
        alive: Callable[[Sequence[int]], None],
        log: Callable[[str], None],
    ) -> ProcessGroup:
        """Join the job that the environment describes. LearnerLost if not all learners come."""
        deadline = time.monotonic() + JOIN_S
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        line = f"{ranks.name} waits at {place} for all others to come, for at most {JOIN_S:g} s"
        report = threading.Timer(REPORT_S, log, [line])
        report.daemon = True
        report.start()
        backend = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(device)
        try:
            store, _, _ = next(
                dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=timedelta(seconds=JOIN_S))
            )

            def wait(keys: list[str]) -> None:
                store.wait(keys, _left(deadline))

            _check_devices(_exchange(store, ranks, "come", device.type, wait))
            # NCCL ends the process if a collective takes longer; over gloo `_wait` watches the others.
            timeout = timedelta(seconds=stall_timeout) if backend == "nccl" else LONGEST_WAIT
            dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.world_size, timeout=timeout)
        except RuntimeError as error:  # as are all errors of torch.distributed
            reason = str(error).partition("\n")[0]
            raise LearnerLost(
                f"{ranks.name}: not all learners came within {JOIN_S:g} s ({reason}); look at the log of the others"
            ) from error
        finally:
            report.cancel()
        return cls(ranks, device, store, stall_timeout, alive)

    # -- before training ---------------------------------------------------------------------------------------

    def require_same(self, facts: Mapping[str, str]) -> None:
        texts = _exchange(self.store, self.ranks, "facts", json.dumps(dict(facts)), self._wait_for_keys)
        found = [json.loads(text) for text in texts]
        for rank, other in enumerate(found):
            differing = [name for name in found[0] if other.get(name) != found[0][name]]
            if differing:
                name = differing[0]
                raise SettingError(
                    f"rank {rank} has another value of {name} than rank 0: {other.get(name)}, not {found[0][name]}; "
                    "start all ranks with the same command, on machines of the same kind, or set the value"
                )

    def leaders(self, name: str, value: str) -> str:
        if self.is_leader:
            self.store.set(f"leader/{name}", value)
        self._wait_for_keys([f"leader/{name}"])
        return str(self.store.get(f"leader/{name}").decode())

    def copy_from_leader(self, parts: Mapping[str, Mapping[str, Tensor]]) -> bool:
        for part in sorted(parts):
            for name in sorted(parts[part]):
                tensor = parts[part][name]
                sent = tensor.detach().to(self.device).contiguous()
                self._wait(dist.broadcast(sent, src=0, async_op=True))
                if not self.is_leader:
                    with torch.no_grad():
                        tensor.copy_(sent)
        return not self.is_leader

    def _wait_for_keys(self, keys: list[str]) -> None:
        """Wait until the store has the keys, while the others live."""
        with self._signs.waiting():
            while True:
                with self._translating():
                    try:
                        self.store.wait(keys, timedelta(seconds=LOOK_S))
                        return
                    except dist.DistStoreError:
                        self._look()

    # -- in every update ---------------------------------------------------------------------------------------

    def propose(self, vote: Vote, counts: Counts, numbers: np.ndarray) -> None:
        notes = torch.zeros(NOTES, dtype=torch.float64)
        notes[:COUNTS] = torch.tensor([digit for count in counts for digit in divmod(count, DIGIT)])
        notes[COUNTS] = vote.save
        notes[COUNTS + 1 + vote.outcome] = 1.0
        self._notes.copy_(notes)
        self._agreed.zero_()
        packed = _packed(numbers)
        if len(self._numbers) != len(packed):  # before the first update, which a recording repeats with this memory
            self._numbers, self._all_numbers = (torch.zeros(len(packed), device=self.device) for _ in range(2))
        self._numbers.copy_(packed)

    @torch.no_grad()
    def average_gradients(
        self, gradient: Tensor, valid: Tensor, metrics: Mapping[str, Tensor], joint: Mapping[str, Joint]
    ) -> dict[str, Tensor]:
        means, size, world = [name for name in metrics if name not in joint], gradient.numel(), self.world_size
        own = [one.numbers().detach().to(gradient).flatten() for one in joint.values()]
        lengths = [len(one) for one in own]
        numbers = self._numbers if metrics else self._numbers[:0]
        ends = np.cumsum([size, 1, NOTES, len(means), world * sum(lengths), len(numbers)]).tolist()
        message = self._message(ends[-1], gradient)
        own_rows = valid.sum().to(gradient.dtype)
        torch.mul(gradient, own_rows, out=message[:size])
        message[size] = own_rows
        message[ends[1] : ends[2]] = self._notes
        if means:
            values = torch.stack([metrics[name].detach().to(gradient) for name in means])
            message[ends[2] : ends[3]] = torch.where(own_rows > 0, values * own_rows, 0.0)
        table = message[ends[3] : ends[4]].view(world, -1)
        if own:
            table.zero_()
            table[self.ranks.rank] = torch.cat(own)
        message[ends[4] :] = numbers
        self._sum(message)
        rows = message[size].clamp(min=1.0)
        torch.div(message[:size], rows, out=gradient)
        self._agreed.copy_(message[ends[1] : ends[2]])
        found = dict(zip(means, (message[ends[2] : ends[3]] / rows).unbind(), strict=True))
        for (name, one), columns in zip(joint.items(), table.split(lengths, 1) if own else (), strict=True):
            found[name] = one.combine(columns).to(metrics[name].dtype)
        if metrics:
            self._all_numbers.copy_(message[ends[4] :])
        return {name: found[name] for name in metrics}

    @torch.no_grad()
    def pool_moments(self, moments: Sequence[BatchMoments]) -> Sequence[BatchMoments]:
        own = torch.cat([torch.cat([rows.view(1), mean.flatten(), var.flatten()]) for mean, var, rows in moments])
        all_of, pooled, start = self._gather(own), [], 0  # [W, K]
        for mean, _, _ in moments:
            size = mean.numel()
            rows = all_of[:, start : start + 1]
            means, variances = all_of[:, start + 1 : start + 1 + 2 * size].split(size, 1)
            start += 1 + 2 * size
            total = rows.sum()
            share = rows / total.clamp(min=1.0)
            average = (share * means).sum(0)
            # Deviations from the common mean: the squares of the means themselves would cancel.
            var = (share * (variances + (means - average).square())).sum(0)
            pooled.append(BatchMoments(average.view_as(mean), var.view_as(mean), total))
        return pooled

    @torch.no_grad()
    def average_metric(self, metric: Tensor, rows: Tensor) -> Tensor:
        weighted = torch.where(rows > 0, metric.double() * rows, 0.0)
        total, count = self._gather(torch.stack([weighted, rows.double()])).sum(0).unbind()
        return (total / count.clamp(min=1.0)).to(metric.dtype)

    def total_counts(self, counts: Counts, skipped: bool) -> Counts:
        if skipped:
            own = torch.tensor(counts, dtype=torch.int64, device=self.device)
            return Counts(*self._gather(own).sum(0).tolist())
        digits = self._agreed[:COUNTS].view(-1, 2).long()
        return Counts(*(DIGIT * digits[:, 0] + digits[:, 1]).tolist())

    def agree(self, vote: Vote) -> Vote:
        save, *proposed = self._agreed[COUNTS:].tolist()
        outcomes = [outcome for outcome, votes in enumerate(proposed) if votes > 0]
        return Vote(max(outcomes, default=0), save > 0)

    def numbers(self) -> np.ndarray:
        return _unpacked(self._all_numbers)

    def exchange(self, numbers: np.ndarray) -> np.ndarray:
        table = torch.from_numpy(numbers.copy()).to(self.device)
        self._sum(table)
        return table.cpu().numpy()

    def check_same(self, digest: Callable[[], int], update: int) -> None:
        own = digest()
        digests = self._gather(torch.tensor([own], dtype=torch.int64, device=self.device)).flatten().tolist()
        for rank, other in enumerate(digests):
            if other != digests[0]:
                raise LearnersDiffer(f"after update {update} the weights of rank {rank} are not those of rank 0")

    def collect(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not arrays:
            return arrays
        names = sorted(arrays)
        sizes = self._gather(torch.tensor([arrays[name].nbytes for name in names], device=self.device)).tolist()
        if not self.is_leader:
            for name in names:
                flat = torch.from_numpy(np.frombuffer(arrays[name].tobytes(), np.uint8).copy()).to(self.device)
                self._wait(dist.isend(flat, dst=0))
            return {}
        collected = dict(arrays)
        for rank in range(1, self.world_size):
            for name, size in zip(names, sizes[rank], strict=True):
                flat = torch.empty(size, dtype=torch.uint8, device=self.device)
                self._wait(dist.irecv(flat, src=rank))
                collected[f"{name}.{rank}"] = flat.cpu().numpy().view(arrays[name].dtype)
        return collected

    def close(self) -> None:
        self._signs.close()
        with contextlib.suppress(RuntimeError, ValueError):  # the others may be gone
            dist.destroy_process_group()

    # -- parts -------------------------------------------------------------------------------------------------

    def _message(self, size: int, like: Tensor) -> Tensor:
        """A buffer [size] that is used again: a recorded update needs the same memory."""
        if size not in self._messages:
            self._messages[size] = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._messages[size]

    def _sum(self, message: Tensor) -> None:
        self._wait(dist.all_reduce(message, async_op=True))

    def _gather(self, own: Tensor) -> Tensor:
        """own [K] -> [W, K], of all learners by rank. A sum in which every other learner has zeros."""
        table = own.new_zeros(self.world_size, own.numel())
        table[self.ranks.rank] = own
        self._sum(table)
        return table

    def _wait(self, work: Any) -> None:
        """Wait for a collective while the others live. LearnerLost if one is gone or shows no sign of life."""
        if self.recordable:  # the stream waits, and NCCL watches the others
            work.wait()
            return
        with self._translating(), self._signs.waiting():
            while True:
                try:
                    work.wait(timedelta(seconds=LOOK_S))
                    return
                except RuntimeError:
                    if work.is_completed():
                        raise
                self._look()

    def _look(self) -> None:
        """Raise LearnerLost if another learner is silent; show that this one lives if another one works."""
        if silent := self._signs.silent():
            names = ", ".join(map(str, silent))
            seconds = self._signs.limit
            raise LearnerLost(
                f"rank {names} has shown no sign of life for {seconds:.0f} s (run.stall-timeout)", Exit.STALLED
            )
        if working := self._signs.working():
            self.alive(working)

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        """Turn an error of the connection into LearnerLost."""
        try:
            yield
        except LearnerLost:
            raise
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise LearnerLost(
                f"another learner of the job was lost ({reason[-120:]}); its own last line says why"
            ) from error


class SignsOfLife:
    """Counts up in the store of the job from a thread, and reads the counts of the other learners."""

    def __init__(self, ranks: Ranks, store: Any, limit: float) -> None:
        """limit: seconds without a count after which another learner is silent."""
        self.ranks, self.limit = ranks, limit
        self._store = store.clone()  # a connection of its own: the other one may be waiting
        self._others = [rank for rank in range(ranks.world_size) if rank != ranks.rank]
        self._seen: dict[int, tuple[bytes, float]] = {}  # rank -> newest count, and when it came
        self._waiting, self._closed = threading.Event(), threading.Event()
        self._show(0)
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this context the learner waits for others, so no other one should wait for it."""
        self._waiting.set()
        try:
            yield
        finally:
            self._waiting.clear()

    def silent(self) -> list[int]:
        """Ranks whose learner has not counted for the limit. Reads all counts."""
        now, found = time.monotonic(), []
        counts = self._store.multi_get([self._key(rank) for rank in self._others])
        for rank, count in zip(self._others, counts, strict=True):
            before, at = self._seen.get(rank, (b"", now))
            if count != before:
                at = now
            self._seen[rank] = count, at
            if now - at > self.limit:
                found.append(rank)
        return found

    def working(self) -> list[int]:
        """Ranks whose learner lives and does something else than waiting, by the counts that were read last."""
        now = time.monotonic()
        return [rank for rank, (count, at) in self._seen.items() if not count.endswith(b"w") and now - at < 3 * LOOK_S]

    def _key(self, rank: int) -> str:
        return f"life/{rank}"

    def _show(self, count: int) -> None:
        self._store.set(self._key(self.ranks.rank), f"{count}{'w' * self._waiting.is_set()}")

    def _run(self) -> None:
        count = 0
        with contextlib.suppress(RuntimeError):  # the store is gone, so the job ends
            while not self._closed.wait(LOOK_S):
                count += 1
                self._show(count)


def _exchange(store: Any, ranks: Ranks, name: str, value: str, wait: Callable[[list[str]], None]) -> list[str]:
    """The values of all learners, by rank. wait: waits until the store has keys.

    The leader, whose process may hold the store, returns last: it may exit because of what it has read.
    """
    store.set(f"{name}/{ranks.rank}", value)
    keys = [f"{name}/{rank}" for rank in range(ranks.world_size)]
    wait(keys)
    found = [store.get(key).decode() for key in keys]
    store.set(f"{name}/{ranks.rank}/read", "")
    if ranks.is_leader:
        wait([f"{key}/read" for key in keys])
    return found


def _check_devices(kinds: list[str]) -> None:
    """SettingError if the learners do not all train on devices of one kind, by rank."""
    for rank, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise SettingError(
                f"rank {rank} trains on {kind} and rank 0 on {kinds[0]}; set run.device, or use machines of one kind"
            )


def _packed(numbers: np.ndarray) -> Tensor:
    """[K] float64 -> [4 K] float32 without rounding: 16 bits in each."""
    return torch.from_numpy(numbers.view(np.uint16).astype(np.float32))


def _unpacked(packed: Tensor) -> np.ndarray:
    """The inverse."""
    return packed.cpu().numpy().astype(np.uint16).view(np.float64)


def _left(deadline: float) -> timedelta:
    return timedelta(seconds=max(1.0, math.ceil(deadline - time.monotonic())))
