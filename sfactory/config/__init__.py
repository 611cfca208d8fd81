"""What a run is told: settings, their bounds, presets, files and flags. Standard library only at import."""

from sfactory.config.schema import (
    Checkpoint,
    Config,
    Env,
    Eval,
    Learning,
    Log,
    Model,
    Normalize,
    Optim,
    Run,
    Sampling,
    Stop,
    to_dict,
)

__all__ = [
    "Checkpoint",
    "Config",
    "Env",
    "Eval",
    "Learning",
    "Log",
    "Model",
    "Normalize",
    "Optim",
    "Run",
    "Sampling",
    "Stop",
    "to_dict",
]
