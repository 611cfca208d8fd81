"""sfactory: train a policy as fast as one machine allows, from data whose staleness is known to the update."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfactory._version import __version__

if TYPE_CHECKING:
    from sfactory.api import make_config, resume, train
    from sfactory.config import Config
    from sfactory.play.policy import Policy, load_policy

__all__ = ["Config", "Policy", "__version__", "load_policy", "make_config", "resume", "train"]

_HOMES = {
    "Config": "config",
    "Policy": "play.policy",
    "load_policy": "play.policy",
    "make_config": "api",
    "resume": "api",
    "train": "api",
}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: samplers import this package and stay free of what they do not need."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"sfactory.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
