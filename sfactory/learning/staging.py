"""Copy slots into the learner's batch.

The batch is allocated once and refilled for every update. So slots can be released before the update begins, and a
recorded update finds its batch where the last one was. On a GPU, large leaves are copied from the slots directly where
the device may read the shared memory, all others through pinned memory.

Legend: T steps, E environments of a group, B lanes: slots of the batch times E.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from sfactory.device.accelerator import DIRECT_BYTES, Accelerator
from sfactory.learning.batch import Batch
from sfactory.learning.batch_fields import batch_fields
from sfactory.learning.distributed import Counts
from sfactory.learning.own_time import own_time
from sfactory.shm.trajectory import CURRENT, Schema, Trajectories


class Staging:
    """Copies slots side by side, time-major, into a `Batch` on the learner's device."""

    def __init__(
        self,
        schema: Schema,
        lanes: int,
        accelerator: Accelerator | None = None,
        direct: bool = False,
        acting: str = "",
        agents: int = 1,
    ) -> None:
        """lanes: lanes side by side in one batch. direct: the accelerator may read the slots itself. acting: the leaf
        of the observation that says whether an agent acts, see `own_time`. agents: lanes of one environment."""
        self.schema, self.lanes, self.accelerator = schema, lanes, accelerator
        self.acting, self.agents = acting, agents
        leaves = {
            name: np.zeros((schema.rollout_length + extra, lanes, *shape), dtype)
            for name, (extra, shape, dtype) in batch_fields(schema, acting).items()
        }
        if schema.state_size:
            leaves["state"] = np.zeros((lanes, schema.state_size), np.float32)
        self.names = [name for name in leaves if name not in ("lag", "successor", "order")]  # those that slots have
        # Leaves in host memory. Leaves that the accelerator copies from the slots itself are not among them.
        self.tensors = {name: torch.from_numpy(leaf) for name, leaf in leaves.items()}
        self.on_device = self.tensors
        if accelerator is not None:
            slots, large = lanes // schema.lanes, set(schema.obs) - {acting}  # `acting` is read on the host
            self.on_device = {
                name: torch.zeros_like(leaf, device=accelerator.device)
                for name, leaf in self.tensors.items()
                if name != "policy_version"
            }
            self.tensors = {
                name: accelerator.pinned(leaf)
                for name, leaf in self.tensors.items()
                if not (direct and name in large and leaves[name].nbytes // slots >= DIRECT_BYTES)
            }
        self.versions, self.valid = (self.tensors[name].numpy() for name in ("policy_version", "valid"))
        # [T, B] where there are several agents: rows in which one acts or waits, before `own_time`.
        self._in_episode = np.zeros_like(self.valid)
        self.batch = as_batch(schema, self.on_device)

    def copy(self, slots: list[tuple[int, int]], trajectories: Trajectories, updates: int) -> None:
        """Fill `batch` with the slots (group, slot) in this order; the slots are not read after the call.

        updates: finished before the one that this batch is for.
        """
        for lanes, (group, slot) in zip(self._lanes(), slots, strict=True):
            for name in self.names:
                source = trajectories[name][group, slot]
                if name not in self.tensors:
                    assert self.accelerator is not None
                    self.accelerator.copy(self.on_device[name][:, lanes], torch.from_numpy(source))
                elif name == "state":
                    self.tensors[name].numpy()[lanes] = source
                else:
                    self.tensors[name].numpy()[:, lanes] = source[:, None] if name == "policy_version" else source
            if self.schema.players:  # nothing is learned from the actions of opponents
                self.tensors[self.acting].numpy()[:, lanes] &= trajectories["player"][group, slot] == CURRENT
        if self.acting:
            valid, first = (self.tensors[name].numpy() for name in ("valid", "first"))
            np.logical_or(valid, ~first[1:], out=self._in_episode)
            self._to_own_time()
        self.tensors["log_prob"].masked_fill_(~self.tensors["valid"], 0.0)  # finite on reset rows too
        np.maximum(updates - self.versions, 0, out=self.tensors["lag"].numpy(), casting="unsafe")
        if self.accelerator is not None:
            for name, target in self.on_device.items():
                if name in self.tensors:
                    self.accelerator.copy(target, self.tensors[name])
            self.accelerator.wait()

    def counts(self, trained: np.ndarray | None = None) -> Counts:
        """Valid rows of the batch, and steps of environments. trained: [T, B] bool, those of these rows only.

        A step of an environment is one in which some agent acts or waits, and no reset. It counts with the rows of the
        agents that act, or of all agents where none has a row to learn from.
        """
        rows = self.valid if trained is None else self.valid & trained
        if not self.acting:
            return Counts(int(rows.sum()))
        steps = self._by_environment(self._in_episode).any(2)
        if trained is not None:
            acted = self._by_environment(self.valid)
            counted = np.where(acted.any(2, keepdims=True), acted, self._by_environment(self._in_episode))
            steps = (counted & self._by_environment(trained)).any(2)
        return Counts(int(rows.sum()), int(steps.sum()))

    def _by_environment(self, rows: np.ndarray) -> np.ndarray:
        """[T, B] -> [T, environments, agents]"""
        return rows.reshape(len(rows), -1, self.agents)

    def _to_own_time(self) -> None:
        """Give every action its outcome, which may have arrived while other agents acted."""
        names = ("reward", "terminated", "truncated", "valid", "first")
        fields = {name: self.tensors[name].numpy() for name in names}
        found = own_time(**fields, acting=self.tensors[self.acting].numpy())
        for name, values in found._asdict().items():
            self.tensors[name].numpy()[...] = values
        if self.schema.discounted_return:  # with the rewards that have come until the agent acts again, or at its end
            running, rows = self.tensors["discounted_return"].numpy(), np.arange(self.schema.rollout_length)
            running[...] = np.take_along_axis(running, np.maximum(found.successor - 1, rows[:, None]), axis=0)

    def lag_counts(self, updates: int) -> list[Counter[int]]:
        """Valid rows of every slot by their lag: updates between acting and now."""
        return [self._lag_counts(lanes, updates) for lanes in self._lanes()]

    def _lag_counts(self, lanes: slice, updates: int) -> Counter[int]:
        counts: Counter[int] = Counter()
        lag = updates - self.versions[:, lanes.start]  # one version acts in all lanes of a step
        for of_step, rows in zip(lag.tolist(), self.valid[:, lanes].sum(1).tolist(), strict=True):
            if rows:
                counts[of_step] += rows
        return counts

    def to_host(self) -> dict[str, torch.Tensor]:
        """Every leaf of the batch on the host, to be inspected."""
        return {name: tensor.cpu() for name, tensor in {**self.tensors, **self.on_device}.items()}

    def _lanes(self) -> Iterator[slice]:
        """The lanes of every slot of the batch."""
        envs = self.schema.lanes
        return (slice(start, start + envs) for start in range(0, self.lanes, envs))


def as_batch(schema: Schema, leaves: Mapping[str, torch.Tensor], fresh: torch.Tensor | None = None) -> Batch:
    """The batch of these leaves, by name. fresh: see `Batch.fresh`."""
    return Batch(
        obs={name: leaves[name] for name in schema.obs},
        first=leaves["first"],
        action={name: leaves[name] for name in schema.actions},
        log_prob=leaves["log_prob"],
        params=leaves["params"],
        reward=leaves["reward"],
        terminated=leaves["terminated"],
        truncated=leaves["truncated"],
        valid=leaves["valid"],
        lag=leaves["lag"],
        state=leaves.get("state"),
        discounted_return=leaves.get("discounted_return"),
        successor=leaves.get("successor"),
        order=leaves.get("order"),
        fresh=fresh,
    )
