"""The trajectory schema: fields, shapes and time indices of a slot.

Index t holds the policy's input (obs, first), its output (action, log_prob, params, policy_version) and the result of
the action (reward, terminated, truncated, valid). Environments reset themselves at the step after an end:

    t            0     1     2     3            4          5
    obs          o0    o1    o2    o3           o_final    o0'      o_final = observation at the end of the episode
    first        1     0     0     0            0          1
    terminated/  0     0     0     1            0          0
    truncated
    valid        1     1     1     1            0          1        t=4 is the reset step: action ignored, reward 0

Therefore V(obs[t+1]) is the bootstrap of every row, truncated ones included, and no next_obs is stored. A life loss
sets terminated, and the row after it is an ordinary valid row with first = 1. A row at which the environment failed is
a reset row.

A slot is time-major and every field is a separate array: [G, S, T, E, ...], G groups, S slots per group, T steps,
E lanes: environments, or the agents of all of them. Observation and first have an extra row T, the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfactory.shm.arena import Arena, Field

CURRENT = -1
"""In `player`: the policy that learns. Other numbers are those of opponents (`workers.opponent_pool`)."""
MAGIC = -(2**15) - 7  # fills integers that were never written: no valid action or count


@dataclass(frozen=True)
class Schema:
    """Shape of every slot. `obs` and `actions` map leaf names to (shape, dtype), without the axis of lanes."""

    rollout_length: int
    lanes: int
    """Environments of a group, times their agents."""
    num_groups: int
    slots_per_group: int
    obs: Mapping[str, tuple[tuple[int, ...], str]]
    actions: Mapping[str, tuple[tuple[int, ...], str]]
    num_params: int
    """Distribution parameters per row (K): logits, or means and log standard deviations."""
    num_noise: int
    """Uniform numbers per row (N): one per action head or dimension."""
    state_size: int = 0
    """Width of the recurrent state (H); 0: the policy is not recurrent."""
    discounted_return: bool = False
    """Whether rows hold the running discounted return, for reward normalization."""
    players: bool = False
    """Whether rows say who acts in them (`player`) and how a game ended (`outcome`), for self-play."""

    def rows(self) -> dict[str, tuple[int, tuple[int, ...], str]]:
        """Field name -> (extra rows after T, shape after [T, E], dtype)."""
        fields: dict[str, tuple[int, tuple[int, ...], str]] = {}
        for name, (shape, dtype) in self.obs.items():
            fields[name] = (1, shape, dtype)
        fields["first"] = (1, (), "bool")
        fields["noise"] = (0, (self.num_noise,), "float32")
        for name, (shape, dtype) in self.actions.items():
            fields[name] = (0, shape, dtype)
        for name in ("log_prob", "value", "reward"):
            fields[name] = (0, (), "float32")
        fields["params"] = (0, (self.num_params,), "float32")
        for name in ("terminated", "truncated", "valid"):
            fields[name] = (0, (), "bool")
        if self.discounted_return:
            fields["discounted_return"] = (0, (), "float32")
        if self.players:
            fields["player"] = (1, (), "int64")
            fields["outcome"] = (0, (), "float32")
        return fields

    def layout(self) -> dict[str, Field]:
        lead = (self.num_groups, self.slots_per_group)
        layout = {
            name: Field((*lead, self.rollout_length + extra, self.lanes, *shape), dtype)
            for name, (extra, shape, dtype) in self.rows().items()
        }
        layout["policy_version"] = Field((*lead, self.rollout_length), "int64")
        if self.state_size:
            layout["state"] = Field((*lead, self.lanes, self.state_size), "float32")
            # Two rows per environment: request n reads row n % 2 and writes the other, so it can be computed twice.
            layout["memory"] = Field((self.num_groups, 2, self.lanes, self.state_size), "float32")
        return layout


class Trajectories:
    """The data of all slots. The slot table decides which process may write the rows of a slot."""

    def __init__(self, arena: Arena, schema: Schema) -> None:
        self.schema = schema
        self.fields: dict[str, np.ndarray] = {name: arena[name] for name in schema.layout()}
        self.names = tuple(schema.rows())

    def __getitem__(self, name: str) -> np.ndarray:
        return self.fields[name]

    def poison(self, group: Any = slice(None), slot: Any = slice(None)) -> None:
        """Fill slots with NaN and magic numbers, so that reading rows that were never written is detected."""
        for name in (*self.names, "policy_version"):
            array = self.fields[name][group, slot]
            if array.dtype.kind == "f":
                array[...] = np.nan
            elif array.dtype.kind == "i":
                array[...] = MAGIC
            elif array.dtype.kind == "u":
                array[...] = 0xA5
