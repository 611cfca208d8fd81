"""What a user said about an environment, as one object that travels from the settings to the family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sfactory.envs.spec import Settings


@dataclass(frozen=True)
class EnvOptions:
    """Everything a user said about an environment; `Config.env.options` makes it, `make_group` takes it."""

    settings: Settings = field(default_factory=dict)
    """Arguments of the environment itself."""
    protocol: str = ""
    """Evaluation protocol; empty: the family's own choice."""
    wrappers: tuple[str, ...] = ()
    """Wrappers around every single environment, the innermost first (`sfactory.envs.wrappers`)."""
    wrapper_settings: Mapping[str, Settings] = field(default_factory=dict)
    """Arguments of the wrappers, by the name of the wrapper."""
    drop: tuple[str, ...] = ()
    """Leaves of the observation that are left out, with or without `obs/` (`sfactory.envs.space_leaves`)."""

    agent_id: bool = False
    """Append the number of the agent to observations of environments with several agents."""
    pad_spaces: bool = False
    """Agents of one environment may have spaces of different sizes."""
    info_keys: tuple[str, ...] = ()
    """Numbers of `info` that are recorded; empty: all (`sfactory.envs.info_numbers`)."""

    @classmethod
    def of(cls, given: EnvOptions | Settings | None) -> EnvOptions:
        """Return options as they are, and a plain mapping as settings."""
        return given if isinstance(given, EnvOptions) else cls(settings=dict(given or {}))

    def as_dict(self) -> dict[str, Any]:
        """Return the options as plain data; `info_keys`, which earlier versions did not have, only if it is used."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "info_keys" or value}
