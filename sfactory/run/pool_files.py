"""Where the opponents of a run are: `RUN/pool`, one folder per earlier policy, and their ratings. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sfactory.monitor.rows import is_count, is_number
from sfactory.shm.trajectory import CURRENT

RATINGS = "ratings.json"
FIRST_RATING = 1000.0
"""Elo rating of the policy at the start of a run, and of policies of other runs when they are first met."""
SCORES = {1: 1.0, 0: 0.5, -1: 0.0}
"""Outcome of a game -> score."""


@dataclass
class PoolEntry:
    """One opponent. Wins, draws and losses are those of the policy that learns against it."""

    number: int
    name: str
    rating: float = FIRST_RATING
    wins: int = 0
    draws: int = 0
    losses: int = 0
    retired: bool = False
    """Has left the pool; games that it has begun go on."""

    @property
    def inside(self) -> bool:
        """Whether it is an earlier policy of this run."""
        return self.number > CURRENT


def pool_dir(run_dir: Path) -> Path:
    """Folder of the pool."""
    return run_dir / "pool"


def member_path(run_dir: Path, env_steps: int) -> Path:
    """Folder of the policy that had trained so many env_steps."""
    return pool_dir(run_dir) / f"{env_steps:012d}"


def is_pool_state(state: object) -> bool:
    """Whether a value read from JSON describes a pool, as `OpponentPool.state_dict` does."""
    if not isinstance(state, Mapping) or not isinstance(state.get("opponents"), list):
        return False
    recent = state.get("recent")
    counts = (state.get(name) for name in ("games", "since_admission", "admitted_at"))
    return (
        is_number(state.get("rating"))
        and all(map(is_count, counts))
        and isinstance(recent, list)
        and all(one in SCORES.values() for one in recent)
        and all(map(_is_opponent, state["opponents"]))
    )


def _is_opponent(entry: object) -> bool:
    names = set(PoolEntry.__dataclass_fields__)
    if not isinstance(entry, Mapping) or set(entry) != names:
        return False
    return (
        type(entry["number"]) is int
        and abs(entry["number"]) < 10**18
        and isinstance(entry["name"], str)
        and is_number(entry["rating"])
        and math.isfinite(entry["rating"])
        and all(is_count(entry[name]) for name in ("wins", "draws", "losses"))
        and isinstance(entry["retired"], bool)
    )
