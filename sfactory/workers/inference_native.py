"""A turn of inference by the native kernels: observations are read in the slots, and results written there.

There is no batch to gather and nothing to scatter: row r of the turn is a row of every field in shared memory.

Legend: G groups, S slots per group, T steps, E environments of a group; rows of fields are numbered along [G, S, T, E].
"""

from __future__ import annotations

import numpy as np
import torch

from sfactory.device.thread_pool import ThreadPool
from sfactory.model.actor_critic import ActorCritic
from sfactory.native.head import NativeActor
from sfactory.native.network import NativeNetwork
from sfactory.shm.slots import unpack_all
from sfactory.shm.trajectory import Trajectories


class NativeTurn:
    """Computes the responses to requests directly in the slots."""

    def __init__(self, model: ActorCritic, trajectories: Trajectories, threads: int) -> None:
        schema = self.schema = trajectories.schema
        self.network = NativeNetwork(model, ThreadPool(threads))
        self.leaf = torch.from_numpy(trajectories[self.network.plan.leaf]).flatten(0, 3)
        names = (*schema.actions, "noise", "log_prob", "params", "value")
        self.actor = NativeActor(model.distribution, {name: trajectories[name] for name in names})
        self.versions = trajectories["policy_version"]
        self.envs = np.arange(schema.envs_per_group)

    def load(self, weights: torch.Tensor) -> None:
        """Use these weights [P] from the next turn on."""
        self.network.pack(weights)

    def run(self, groups: np.ndarray, words: np.ndarray, version: int) -> None:
        """Respond to the request words of `groups`, in rows that no other process writes now."""
        _, slot, t = unpack_all(words)
        steps = self.schema.rollout_length
        lead = groups * self.schema.slots_per_group + slot
        observed = self._rows(lead * (steps + 1) + t)  # observations have one row more
        params, value = self.network.forward(self.leaf, torch.from_numpy(observed), len(observed), keep=False)
        self.actor.act(self._rows(lead * steps + t), params, value)
        self.versions[groups, slot, t] = version

    def _rows(self, steps: np.ndarray) -> np.ndarray:
        """Numbers of the rows of all environments at these steps."""
        return (steps[:, None] * self.schema.envs_per_group + self.envs).ravel()
