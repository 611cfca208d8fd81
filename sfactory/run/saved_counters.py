"""Check the counters of a checkpoint's state file: every later number of a run continues them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sfactory.errors import CheckpointError

WHOLE = (
    "env_steps", "environment_steps", "updates", "frames", "skipped_updates", "launch", "rows_until", "schedule_end",
    "held_slots",
)  # fmt: skip
LARGEST = 2**53
"""Whole numbers below it are exact also as floating-point numbers."""


def environment_steps_of(state: Mapping[str, Any]) -> int | None:
    """Steps of environments with several agents by a checkpoint's state; None: its version did not count them."""
    steps = state.get("environment_steps", None if state.get("env_steps") else 0)
    return None if steps is None else int(steps)


def check_counters(state: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a counter is not a number that a run can have reached."""
    if "env_steps" not in state:
        raise CheckpointError("state.json has no env_steps")
    for name in (*WHOLE, "seconds"):
        value = state.get(name, 0)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not 0 <= value < LARGEST or (name in WHOLE and value != int(value)):
            what = "a number of seconds" if name == "seconds" else "a whole number"
            raise CheckpointError(f"state.json: {name} is {str(value)[:40]}, it must be {what}, 0 or more")
