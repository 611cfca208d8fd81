"""sfactory: asynchronous reinforcement learning on one machine, with updates that correct for the age of their data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sfactory import _moved
from sfactory._version import __version__

if TYPE_CHECKING:
    from sfactory.api import compare, evaluate, export, load_policy, make_config, play_match, report, resume, train
    from sfactory.config import Config
    from sfactory.errors import RunFailed
    from sfactory.play.policy import Policy
    from sfactory.run.callbacks import Callback

__all__ = [
    "Callback",
    "Config",
    "Policy",
    "RunFailed",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "load_policy",
    "make_config",
    "play_match",
    "report",
    "resume",
    "train",
]

_HOMES = {
    "Callback": "run.callbacks",
    "Config": "config",
    "Policy": "play.policy",
    "RunFailed": "errors",
    "compare": "api",
    "evaluate": "api",
    "export": "api",
    "load_policy": "api",
    "make_config": "api",
    "play_match": "api",
    "report": "api",
    "resume": "api",
    "train": "api",
}

_moved.install()


def __getattr__(name: str) -> Any:
    """Import public names on first use: samplers import this package and must not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"sfactory.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
