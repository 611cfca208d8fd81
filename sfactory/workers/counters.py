"""What a learner has trained so far: updates, steps, seconds, skipped updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sfactory.learning.distributed import Counts
from sfactory.run.saved_counters import environment_steps_of


@dataclass
class Counters:
    """Counted over all launches of a run; stored in checkpoints."""

    clock: Callable[[], float] = time.monotonic
    updates: int = 0
    env_steps: int = 0
    """Valid rows trained: where an environment has several agents, steps of agents."""
    environment_steps: int | None = 0
    """Where an environment has several agents: its steps with these rows. None: not known, because a checkpoint of an
    earlier version did not have them."""
    seconds: float = 0.0
    """Time spent training, up to the last `tick`."""
    skipped_updates: int = 0
    """Updates with an optimizer step that was not taken because it was not finite."""
    skipped_in_a_row: int = 0
    """The same, since the last update without one."""
    ticked_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        """Count seconds from now on."""
        self.ticked_at = self.clock()

    def count(self, trained: Counts, skipped: bool) -> None:
        """Count one update. trained: by all learners. skipped: a step, or all of them, was not taken."""
        self.updates += 1
        if self.environment_steps is not None:
            self.environment_steps += trained.environment_steps
        self.env_steps += trained.rows
        self.skipped_updates += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def tick(self) -> None:
        """Add the time since the last tick to `seconds`."""
        now = self.clock()
        self.seconds, self.ticked_at = self.seconds + now - self.ticked_at, now

    def exclude(self, seconds: float) -> None:
        """Leave time that was not spent training out of the next tick."""
        self.ticked_at += seconds

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint's state."""
        names = ("env_steps", "updates", "seconds", "skipped_updates")
        known = {} if not self.environment_steps else {"environment_steps": self.environment_steps}
        return {name: getattr(self, name) for name in names} | known

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, from a checkpoint's state."""
        self.updates, self.env_steps = int(state["updates"]), int(state["env_steps"])
        self.environment_steps = environment_steps_of(state)
        self.seconds, self.skipped_updates = float(state["seconds"]), int(state["skipped_updates"])
