"""The batch as the learner holds it: slots side by side, time-major, in memory of its own.

Allocated once and filled anew for every update, so the slots are free before it begins and an update that was recorded
finds its batch where the last one was. Before a GPU the large leaves go straight from the slots to the device where it
may read the shared memory, the others through pinned memory.
Legend: T steps, E environments of a group, B lanes: slots of the batch times E.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sfactory.device.accelerator import DIRECT_BYTES, Accelerator
from sfactory.learning.batch import Batch
from sfactory.shm.trajectory import Schema, Trajectories


class Staging:
    """Copies slots and makes a `Batch` of them on the learner's device."""

    def __init__(
        self, schema: Schema, lanes: int, accelerator: Accelerator | None = None, direct: bool = False
    ) -> None:
        """lanes: environments side by side in one batch. direct: the accelerator may read the slots by itself."""
        self.schema, self.lanes, self.accelerator = schema, lanes, accelerator
        rows = {**schema.rows(), "policy_version": (0, (), "int64"), "lag": (0, (), "float32")}
        del rows["noise"], rows["value"]  # noise was used up by acting, values are computed anew
        leaves = {
            name: np.zeros((schema.rollout_length + extra, lanes, *shape), dtype)
            for name, (extra, shape, dtype) in rows.items()
        }
        if schema.state_size:
            leaves["state"] = np.zeros((lanes, schema.state_size), np.float32)
        self.names = [name for name in leaves if name != "lag"]  # as the slots know them
        # Host memory of what is copied there; on an accelerator the leaves it fetches by itself have none.
        self.tensors = {name: torch.from_numpy(leaf) for name, leaf in leaves.items()}
        self.on = self.tensors
        if accelerator is not None:
            slots = lanes // schema.envs_per_group
            device = accelerator.device
            self.on = {n: torch.zeros_like(x, device=device) for n, x in self.tensors.items() if n != "policy_version"}
            self.tensors = {
                name: accelerator.pinned(x)
                for name, x in self.tensors.items()
                if not (direct and name in schema.obs and leaves[name].nbytes // slots >= DIRECT_BYTES)
            }
        self.versions, self.valid = (self.tensors[name].numpy() for name in ("policy_version", "valid"))
        self.batch = self._batch()

    def copy(self, slots: list[tuple[int, int]], trajectories: Trajectories, updates: int) -> None:
        """Make `batch` of the slots (group, slot), side by side in this order. Nothing reads the slots afterwards.

        updates: finished before the one that this batch is for.
        """
        for lanes, (group, slot) in zip(self._lanes(), slots, strict=True):
            for name in self.names:
                source = trajectories[name][group, slot]
                if name not in self.tensors:
                    assert self.accelerator is not None
                    self.accelerator.copy(self.on[name][:, lanes], torch.from_numpy(source))
                elif name == "state":
                    self.tensors[name].numpy()[lanes] = source
                else:
                    self.tensors[name].numpy()[:, lanes] = source[:, None] if name == "policy_version" else source
        self.tensors["log_prob"].masked_fill_(~self.tensors["valid"], 0.0)  # reset rows: it must be finite there
        np.maximum(updates - self.versions, 0, out=self.tensors["lag"].numpy(), casting="unsafe")
        if self.accelerator is not None:
            for name, on in self.on.items():
                if name in self.tensors:
                    self.accelerator.copy(on, self.tensors[name])
            self.accelerator.wait()

    @property
    def valid_rows(self) -> int:
        """Rows that are no reset steps."""
        return int(self.valid.sum())

    def lags(self, updates: int) -> list[np.ndarray]:
        """Of every slot, updates between acting and now, over its valid rows."""
        lag = updates - self.versions
        return [lag[:, lanes][self.valid[:, lanes]] for lanes in self._lanes()]

    def whole(self) -> dict[str, torch.Tensor]:
        """Every leaf of the batch on the host, for a look at it."""
        return {name: tensor.cpu() for name, tensor in {**self.tensors, **self.on}.items()}

    def _batch(self) -> Batch:
        on = self.on
        return Batch(
            obs={name: on[name] for name in self.schema.obs},
            first=on["first"],
            action={name: on[name] for name in self.schema.actions},
            log_prob=on["log_prob"],
            params=on["params"],
            reward=on["reward"],
            terminated=on["terminated"],
            truncated=on["truncated"],
            valid=on["valid"],
            lag=on["lag"],
            state=on.get("state"),
            discounted_return=on.get("discounted_return"),
        )

    def _lanes(self) -> Iterator[slice]:
        """The lanes of every slot of the batch."""
        envs = self.schema.envs_per_group
        return (slice(start, start + envs) for start in range(0, self.lanes, envs))
