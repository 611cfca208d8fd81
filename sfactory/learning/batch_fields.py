"""Fields of the learner's batch, and the memory that held slots and kept batches need. Free of torch.

Legend: T steps, lanes: of a slot or of a batch.
"""

from __future__ import annotations

import math

import numpy as np

from sfactory.config import Config
from sfactory.config.algorithms import rules_of
from sfactory.shm.trajectory import Schema

NOT_LEARNED = ("noise", "value", "player", "outcome")
"""Fields of slots that no update needs. Values are computed again."""


def batch_fields(schema: Schema, acting: str = "") -> dict[str, tuple[int, tuple[int, ...], str]]:
    """Field -> (extra rows after T, shape after [T, lanes], dtype); without the recurrent state, which has no rows.

    acting: the leaf of the observation that says whether an agent acts, see `own_time`.
    """
    fields = {**schema.rows(), "policy_version": (0, (), "int64"), "lag": (0, (), "float32")}
    if acting:
        fields |= {"successor": (0, (), "int64"), "order": (0, (), "int64")}
    for name in NOT_LEARNED:
        fields.pop(name, None)
    return fields


def bytes_of_lane(schema: Schema, acting: str = "") -> int:
    """Bytes of one lane of a batch, as updates read it."""
    fields = batch_fields(schema, acting)
    del fields["policy_version"]
    rows = sum(
        (schema.rollout_length + extra) * math.prod(shape) * np.dtype(dtype).itemsize
        for extra, shape, dtype in fields.values()
    )
    return rows + 4 * schema.state_size


def replay_bytes(config: Config, schema: Schema, acting: str = "") -> int:
    """Bytes that replay needs: the slots that are held, and the batch with replayed lanes. 0 without replay."""
    if not config.replay.ratio:
        return 0
    slots = config.held_slots + config.batch_slots + config.replayed_slots
    fresh_mask = schema.rollout_length * (config.batch_slots + config.replayed_slots) * schema.lanes
    return slots * schema.lanes * bytes_of_lane(schema, acting) + fresh_mask


def kept_bytes(config: Config, schema: Schema) -> int:
    """Bytes of the batches that an algorithm with auxiliary phases keeps for the next one; 0 for others."""
    if not rules_of(config).keeps_batches:
        return 0
    obs = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in schema.obs.values())
    of_row = obs + 4 + 2  # and the target, `first` and `valid`
    lanes = config.ppg.policy_updates * config.batch_slots * schema.lanes
    return lanes * (schema.rollout_length * of_row + 4 * schema.state_size)


def replay_line(config: Config, schema: Schema, acting: str = "") -> str:
    """What an update trains on with replay, in one line; empty without."""
    replay, minibatches = config.replay, config.batch.minibatches
    if not replay.ratio:
        return ""
    fresh = config.batch_slots * schema.lanes * schema.rollout_length
    replayed = config.replayed_slots * schema.lanes * schema.rollout_length
    step = f"{minibatches} minibatches of {(fresh + replayed) // minibatches:,} rows"
    if minibatches == 1:
        step = f"one minibatch of {fresh + replayed:,} rows"
    if (same := minibatches * (1 + replay.ratio)).is_integer():
        step += f" ({fresh // minibatches:,} without replay; --batch.minibatches {same:.0f} keeps that size)"
    mb = replay_bytes(config, schema, acting) / 1e6
    return (
        f"replay.ratio {replay.ratio:g}: an update trains on {fresh:,} fresh rows and {replayed:,} replayed ones, at "
        f"most {replay.max_age} updates after the first time, in {step}; {config.held_slots} slots are held, "
        f"{mb:,.1f} MB"
    )
