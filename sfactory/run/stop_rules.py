"""The stop rules of a run: which are reached, in words, and how a resume raises them. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sfactory.config import Config, Stop
from sfactory.config.parsing import flag_name
from sfactory.envs import EnvSpec

MARGIN = 1.5
"""A raised rule is at least this many times what was reached, so that training goes on for a while."""


@dataclass(frozen=True)
class Progress:
    """How far a run is. Counted over all launches."""

    env_steps: int = 0
    frames: int = 0
    seconds: float = 0.0
    settled_return: float | None = None
    """Training return of 100 episodes; None while there are fewer."""


class Reached(NamedTuple):
    """A stop rule that holds."""

    setting: str
    limit: float
    value: float
    """What was reached."""

    @property
    def sentence(self) -> str:
        return f"{flag_name(self.setting)} {_shown(self.limit)} was reached ({_shown(self.value)})"

    @property
    def raised(self) -> float:
        """A limit with which training goes on."""
        if self.setting == "stop.target_return":  # returns have any scale and sign: a tenth more of it
            return float(f"{self.value + (max(abs(self.value), abs(self.limit)) / 10 or 1.0):.4g}")
        limit = self.limit
        while limit < MARGIN * self.value:
            limit *= 2
        return limit


def reached_rules(stop: Stop, progress: Progress) -> list[Reached]:
    """Every stop rule that holds, in the order of the settings."""
    values: Mapping[str, float | None] = {
        "env_steps": progress.env_steps,
        "frames": progress.frames,
        "seconds": progress.seconds,
        "target_return": progress.settled_return,
    }
    limits = {name: getattr(stop, name) for name in values}
    return [
        Reached(f"stop.{name}", limit, value)
        for name, limit in limits.items()
        if (value := values[name]) is not None and is_set(name, limit) and value >= limit
    ]


def is_set(name: str, limit: float | None) -> bool:
    """Whether a rule is in use: 0 disables all but the target return, where 0 is a return."""
    return limit is not None if name == "target_return" else bool(limit)


def agent_lines(spec: EnvSpec, config: Config) -> list[str]:
    """A line that says what steps are in an environment with several agents; none where it has one."""
    if not spec.agents:
        return []
    limit = f" {config.stop.env_steps:,}" if config.stop.env_steps else ""
    return [
        f"{len(spec.agents)} agents: stop.env-steps{limit} and all other numbers of training steps are agent steps; "
        "env steps are those of environments"
    ]


def sentence_of(rules: Sequence[Reached]) -> str:
    """What was reached, in words."""
    return " and ".join(rule.sentence for rule in rules)


def raised_settings(rules: Sequence[Reached]) -> dict[str, Any]:
    """Setting -> value with which a resume trains on; empty if no rule is reached."""
    return {rule.setting: rule.raised for rule in rules}


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
