"""The batch as the learner holds it: slots side by side, time-major, in memory of its own.

Allocated once and filled by one copy, so the slots are free before the update begins; pinned where a GPU reads it.
Legend: T steps, E environments of a group, B lanes: slots of the batch times E.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sfactory.memory.trajectory import Trajectories
from sfactory.workers.training_batch import Batch
from sfactory.workers.wiring import Plan


class Staging:
    """Copies slots and makes a `Batch` of them on the learner's device."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.plan, self.device = plan, device
        schema, lanes = plan.schema, plan.config.lanes
        rows = {**schema.rows(), "policy_version": (0, (), "int64")}
        del rows["noise"], rows["value"]  # noise was used up by acting, values are computed anew
        self.tensors = {
            name: torch.from_numpy(np.zeros((schema.rollout_length + extra, lanes, *shape), dtype))
            for name, (extra, shape, dtype) in rows.items()
        }
        if schema.state_size:
            self.tensors["state"] = torch.zeros(lanes, schema.state_size)
        if device.type == "cuda":
            self.tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        self.versions, self.valid = (self.tensors[name].numpy() for name in ("policy_version", "valid"))

    def copy(self, slots: list[tuple[int, int]], trajectories: Trajectories) -> None:
        """Copy the slots (group, slot) side by side, in this order."""
        for name, tensor in self.tensors.items():
            target = tensor.numpy()
            for lanes, (group, slot) in zip(self._lanes(), slots, strict=True):
                source = trajectories[name][group, slot]
                if name == "state":
                    target[lanes] = source
                else:
                    target[:, lanes] = source[:, None] if name == "policy_version" else source

    @property
    def valid_rows(self) -> int:
        """Rows that are no reset steps."""
        return int(self.valid.sum())

    def lags(self, updates: int) -> list[np.ndarray]:
        """Of every slot, updates between acting and now, over its valid rows."""
        lag = updates - self.versions
        return [lag[:, lanes][self.valid[:, lanes]] for lanes in self._lanes()]

    def batch(self, updates: int) -> Batch:
        """On the device. updates: finished before this one."""
        on = {
            name: tensor.to(self.device, non_blocking=True)
            for name, tensor in self.tensors.items()
            if name != "policy_version"
        }
        lag = torch.from_numpy(np.maximum(updates - self.versions, 0).astype(np.float32)).to(self.device)
        return Batch(
            obs={name: on[name] for name in self.plan.spec.obs},
            first=on["first"],
            action={name: on[name] for name in self.plan.spec.actions},
            log_prob=on["log_prob"].masked_fill(~on["valid"], 0.0),
            params=on["params"],
            reward=on["reward"],
            terminated=on["terminated"],
            truncated=on["truncated"],
            valid=on["valid"],
            lag=lag,
            state=on.get("state"),
            discounted_return=on.get("discounted_return"),
        )

    def _lanes(self) -> Iterator[slice]:
        """The lanes of every slot of the batch."""
        envs = self.plan.config.sampling.envs_per_group
        return (slice(start, start + envs) for start in range(0, self.plan.config.lanes, envs))
