"""The learner's threads: a pass of the network in parts, each part on whichever thread is free.

Threads of OpenMP share every single operation and wait for each other after each one: on a core that other workers need
too, the slower half holds up the faster (benchmarks/LOG.md). Here a part is a few hundred rows all the way through the
network, so a thread that is interrupted does fewer parts and nobody waits for more than the last one. How the rows are
divided depends on their number alone, and gradients are summed in the order of the parts: the number of threads changes
no bit.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from sfactory.device.machine import cores
from sfactory.model.actor_critic import ActorCritic, Output

T = TypeVar("T")
AUTO = 4
PARTS = 8  # of a large batch: the last one is short beside the whole
FEW_ROWS, MANY_ROWS = 256, 512  # of small observations in a part: fewer are not worth the calls, more leave the cache
GPU_NUMBERS = 1 << 29  # of observation in a part on a GPU: 19 thousand pictures of Atari, some GB on the way through
FEW_NUMBERS, MANY_NUMBERS = 1 << 21, 1 << 22  # of large ones: numbers of observation in a part, 74 pictures of Atari


def pool_size(threads: int) -> int:
    """`run.learner_threads`, where 0 is one per core up to AUTO."""
    return threads or min(cores(), AUTO)


class ThreadPool:
    """A few threads of one process. `threads` 1: the caller does everything."""

    def __init__(self, threads: int) -> None:
        self.inboxes: list[queue.SimpleQueue[_Job[Any] | None]] = [queue.SimpleQueue() for _ in range(threads - 1)]
        for inbox in self.inboxes:
            threading.Thread(target=_serve, args=(inbox,), daemon=True).start()

    def map(self, task: Callable[[int], T], count: int) -> list[T]:
        """task(0) ... task(count - 1) on all threads, results in order. The first exception is raised here."""
        job = _Job(task, count)
        for inbox in self.inboxes[: count - 1]:
            inbox.put(job)
        job.work()
        return job.results()

    def close(self) -> None:
        for inbox in self.inboxes:
            inbox.put(None)


class _Job(list[T]):
    """Parts that are taken one by one."""

    def __init__(self, task: Callable[[int], T], count: int) -> None:
        super().__init__([None] * count)  # type: ignore[list-item]
        self.task, self.next = task, itertools.count().__next__  # one call of C: two threads never get the same
        self.done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work(self) -> None:
        while (part := self.next()) < len(self):
            try:
                self[part] = self.task(part)
            except BaseException as error:
                self.done.put(error)
            else:
                self.done.put(None)

    def results(self) -> list[T]:
        errors = [self.done.get() for _ in range(len(self))]
        for error in errors:
            if error is not None:
                raise error
        return self


def _serve(inbox: queue.SimpleQueue[_Job[Any] | None]) -> None:
    torch.set_num_threads(1)  # of this thread: the parts are what is done side by side
    while (job := inbox.get()) is not None:
        job.work()
        del job


class Network:
    """The learner's network, its passes divided among a pool.

    Legend: T steps, B lanes, K distribution parameters.
    """

    def __init__(
        self, model: ActorCritic, pool: ThreadPool, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.model, self.pool, self.autocast = model, pool, autocast
        self.parameters = list(model.parameters())
        self._parts: list[tuple[Tensor, Tensor]] = []  # what the parts said, with their graphs
        self._leaves: tuple[Tensor, Tensor] | None = None

    def forward_eval(self, obs: Mapping[str, Tensor], first: Tensor, state: Tensor | None) -> Output:
        """A forward pass for its values. obs [T, B, ...], first [T, B], state [B, H] -> params [T, B, K], value
        [T, B]."""
        parts = self._pass(obs, first, state, learn=False)
        return self._whole([p for p, _ in parts], [v for _, v in parts], first.shape)

    def forward_train(self, obs: Mapping[str, Tensor], first: Tensor, state: Tensor | None) -> Output:
        """A forward pass to learn from: make a loss of what it returns, `loss.backward()`, then `self.backward()`."""
        self._parts = self._pass(obs, first, state, learn=True)
        out = self._whole([p.detach() for p, _ in self._parts], [v.detach() for _, v in self._parts], first.shape)
        self._leaves = (out.params.requires_grad_(), out.value.requires_grad_())
        return out

    def backward(self) -> None:
        """The gradient of every parameter into its `.grad`, from the gradients of what `forward_train` returned."""
        assert self._leaves is not None, "backward() follows forward_train() and a loss"
        parts, ends = self._parts, self._ends(*(leaf.grad for leaf in self._leaves))

        def back(part: int) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(parts[part], self.parameters, ends[part], allow_unused=True)

        each = self.pool.map(back, len(parts))
        self._parts, self._leaves = [], None
        for parameter, grads in zip(self.parameters, zip(*each, strict=True), strict=True):
            known = [grad for grad in grads if grad is not None]
            total = known[0] if known else None
            for grad in known[1:]:
                total.add_(grad)  # type: ignore[union-attr]
            if total is not None and total.stride() != parameter.stride():
                # `backward` would see to it: fused Adam takes a parameter and its gradient for one stretch of memory
                # each, and a convolution on channels-last memory leaves its gradient in that order.
                total = torch.empty_like(parameter).copy_(total)
            parameter.grad = total

    # -- dividing ----------------------------------------------------------------------------------------------------

    def _bounds(self, obs: Mapping[str, Tensor], shape: torch.Size) -> list[int]:
        """Where the parts begin and end: rows T x B, or lanes where the policy has memory."""
        steps, lanes = shape
        deep = steps if self.model.state_size else 1  # rows that go together
        count = steps * lanes // deep
        numbers = sum(leaf[0, 0].numel() for leaf in obs.values())
        if next(iter(obs.values())).device.type != "cpu":  # it divides its work itself, if there is memory for it
            parts = min(count, -(-count * deep * numbers // GPU_NUMBERS))
            return [count * part // parts for part in range(parts + 1)]
        few, many = min(FEW_ROWS, FEW_NUMBERS // numbers), min(MANY_ROWS, MANY_NUMBERS // numbers)
        rows = max(1, min(max(count * deep // PARTS, few), many))
        parts = max(1, min(count, round(count * deep / rows)))
        return [count * part // parts for part in range(parts + 1)]

    def _pass(
        self, obs: Mapping[str, Tensor], first: Tensor, state: Tensor | None, learn: bool
    ) -> list[tuple[Tensor, Tensor]]:
        bounds = self._bounds(obs, first.shape)
        memory = bool(self.model.state_size)
        rows = obs if memory else {name: leaf.flatten(0, 1) for name, leaf in obs.items()}

        def forward(part: int) -> tuple[Tensor, Tensor]:
            cut = slice(bounds[part], bounds[part + 1])
            with torch.set_grad_enabled(learn), self.autocast():
                if memory:
                    its = None if state is None else state[cut]
                    out = self.model.unroll({name: leaf[:, cut] for name, leaf in rows.items()}, first[:, cut], its)
                else:
                    out = self.model({name: leaf[cut] for name, leaf in rows.items()})
            return out.params, out.value

        return self.pool.map(forward, len(bounds) - 1)

    def _whole(self, params: list[Tensor], value: list[Tensor], shape: torch.Size) -> Output:
        if self.model.state_size:
            return Output(torch.cat(params, 1), torch.cat(value, 1), None)
        return Output(torch.cat(params).view(*shape, -1), torch.cat(value).view(shape), None)

    def _ends(self, params: Tensor | None, value: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """The gradients cut as the parts were."""
        assert params is not None
        assert value is not None
        if self.model.state_size:
            sizes = [part.shape[1] for part, _ in self._parts]
            return list(zip(params.split(sizes, 1), value.split(sizes, 1), strict=True))
        sizes = [part.shape[0] for part, _ in self._parts]
        return list(zip(params.flatten(0, 1).split(sizes), value.flatten().split(sizes), strict=True))
