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
from sfactory.native.library import load
from sfactory.native.network import NativeNetwork, pointer
from sfactory.shm.trajectory import Trajectories


class NativeTurn:
    """Computes the responses to requests directly in the slots."""

    def __init__(self, model: ActorCritic, trajectories: Trajectories, threads: int) -> None:
        schema = self.schema = trajectories.schema
        self.rows = load().sf_rows
        self.network = NativeNetwork(model, ThreadPool(threads))
        self.leaf = torch.from_numpy(trajectories[self.network.plan.leaf]).flatten(0, 3)
        self.mask = torch.from_numpy(trajectories[model.mask]).flatten(0, 3) if model.mask else None
        names = (*schema.actions, "noise", "log_prob", "params", "value")
        self.actor = NativeActor(model.distribution, {name: trajectories[name] for name in names})
        self.versions = torch.from_numpy(trajectories["policy_version"])  # keeps the memory
        most = schema.num_groups * schema.lanes
        self.observed, self.written = torch.zeros(2, most, dtype=torch.int64)
        self.outputs = torch.zeros(most, self.network.plan.width), torch.zeros(most)
        self.sizes = schema.slots_per_group, schema.rollout_length, schema.lanes
        self.places = pointer(self.observed), pointer(self.written), pointer(self.versions)

    def load(self, weights: torch.Tensor) -> None:
        """Use these weights [P] from the next turn on."""
        self.network.pack(weights)

    def run(self, groups: np.ndarray, words: np.ndarray, version: int) -> None:
        """Respond to the requests of `groups`, in rows that no other process writes now.

        groups [n] and words [G], the request words of all groups: int64, contiguous.
        """
        rows = len(groups) * self.schema.lanes
        self.rows(groups.ctypes.data, len(groups), words.ctypes.data, *self.sizes, *self.places, version)
        params, value = self.network.forward(
            self.leaf, self.observed[:rows], rows, keep=False, out=self.outputs, mask=self.mask
        )
        self.actor.act(self.written, rows, params, value)
