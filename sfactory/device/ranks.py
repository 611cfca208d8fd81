"""The place of this process in a job of several learners. Read once from the environment, then passed on.

torchrun sets the variables; so can a scheduler (docs/distributed.md). A process without them is a job of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfactory.errors import SettingError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each of its processes."""


@dataclass(frozen=True)
class Ranks:
    """Number of this process among those of the job, and among those of its node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Ranks:
        """The place that the environment describes. SettingError if the description is incomplete or wrong."""
        if not {"RANK", "WORLD_SIZE"} <= set(environ) or environ["WORLD_SIZE"].strip() == "1":
            return cls()
        missing = [name for name in VARIABLES if not environ.get(name)]
        if missing:
            raise SettingError(
                f"WORLD_SIZE is {environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start with torchrun, or "
                "unset WORLD_SIZE to train alone"
            )
        try:
            numbers = [int(environ[name]) for name in VARIABLES[:4]]
        except ValueError as error:
            raise SettingError(f"one of {', '.join(VARIABLES[:4])} is no whole number: {error}") from None
        ranks = cls(*numbers)
        if not (0 <= ranks.rank < ranks.world_size and 0 <= ranks.local_rank < ranks.local_world_size):
            raise SettingError(
                f"RANK {ranks.rank} of WORLD_SIZE {ranks.world_size} with LOCAL_RANK {ranks.local_rank} of "
                f"LOCAL_WORLD_SIZE {ranks.local_world_size}: a rank counts from 0 and is smaller than its size"
            )
        return ranks

    @property
    def alone(self) -> bool:
        """Whether the job has this process only."""
        return self.world_size == 1

    @property
    def is_leader(self) -> bool:
        """Whether this process writes checkpoints and metrics, and evaluates. Exactly one does."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """For messages."""
        return f"rank {self.rank} of {self.world_size}"

    def folder(self, run_dir: Path) -> Path:
        """The folder this process writes into: that of the run, or a folder in it."""
        return run_dir if self.is_leader else run_dir / f"rank-{self.rank}"

    def share(self, cores: int) -> int:
        """Cores for this process, of those that it may use as every process of its node may."""
        return max(1, cores // self.local_world_size)

    def nodes(self, nodes: Sequence[frozenset[int]]) -> list[frozenset[int]]:
        """NUMA nodes for this process, of those that every process of its machine may use.

        With fewer nodes than processes, several processes have the same one.
        """
        first = self.local_rank * len(nodes) // self.local_world_size
        end = (self.local_rank + 1) * len(nodes) // self.local_world_size
        return list(nodes[first : max(end, first + 1)])


ALONE = Ranks()
