"""Telemetry messages from workers to the supervisor."""

from __future__ import annotations

from typing import Any

Message = tuple[str, str, Any]
"""(kind, name of the worker, payload). A plain tuple: samplers send many, and it is pickled fastest."""

LOG = "log"
"""str: a line for the log of the run."""
FAULT = "fault"
"""str: first line is the fault, further lines a traceback."""
EPISODES = "episodes"
"""[(return, length, index of the task)] of completed episodes; with a fourth entry, {name: number}, where `info` had
numbers at the end."""
STEPS = "steps"
"""(valid steps, episodes cut because their environment failed) since the last message."""
STAGES = "stages"
"""Stage -> seconds since the last message."""
METRICS = "metrics"
"""`accumulator.Partial`: values recorded since the last message."""
LEARNER = "learner"
"""Metric -> value, with the counters `env_steps`, `updates` and `seconds`, and `episodes` (`Episodes.state`). Where
there are several agents also `environment_steps`, unless a checkpoint of an earlier version has none. Ends a row."""
END = "end"
"""The counters and `episodes` as in a row: how far the learner is at its end, and what its last checkpoint holds."""
EVALUATION = "eval"
"""eval/* metric -> value."""
NO_EVALUATION = "no eval"
"""(trained steps of the policy, reason): its evaluation failed and is not repeated."""
