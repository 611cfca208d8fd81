"""What a learner has trained so far: updates, steps, seconds, skipped updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Counters:
    """Counted over all launches of a run; stored in checkpoints."""

    clock: Callable[[], float] = time.monotonic
    updates: int = 0
    env_steps: int = 0
    """Valid rows trained: where an environment has several agents, steps of agents."""
    environment_steps: int | None = 0
    """Where an environment has several agents: its steps with these rows. None: a checkpoint of an earlier version has
    not counted them; `count` then extrapolates."""
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

    def count(self, rows: int, skipped: bool, environment_steps: float = 0.0) -> None:
        """Count one update.

        rows: valid ones that were trained on. skipped: a step, or all of them, was not taken. environment_steps: of
        environments, for each of the rows.
        """
        self.updates += 1
        if self.environment_steps is None:
            self.environment_steps = round(self.env_steps * environment_steps)
        self.environment_steps += round(rows * environment_steps)
        self.env_steps += rows
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
        steps = state.get("environment_steps", None if self.env_steps else 0)
        self.environment_steps = None if steps is None else int(steps)
        self.seconds, self.skipped_updates = float(state["seconds"]), int(state["skipped_updates"])
