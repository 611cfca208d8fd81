"""What was asked and cannot be: refused before anything is written or started. Free of torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from sfactory.config import Config, to_dict
from sfactory.config.toml_file import from_toml
from sfactory.device.machine import shows_gpu
from sfactory.run import checkpoint


def check_encoder(name: str) -> None:
    """ValueError for an encoder module:Class whose module is not there. Looked for, not imported: it needs torch."""
    module, colon, _ = name.partition(":")
    try:
        found = not colon or importlib.util.find_spec(module.partition(".")[0]) is not None
    except ValueError:  # a module without a spec, such as __main__
        found = False
    if not found:
        raise ValueError(f"model.encoder {name}: no module {module} here ({os.getcwd()}) or among the packages")


def check_beginning(config: Config) -> None:
    """ValueError or CheckpointError if the weights that `run.init_from` names are not there, or mean something else."""
    path = checkpoint.resolve(Path(config.run.init_from))
    settings = path.parent.parent / "config.toml"
    if not settings.is_file():  # a checkpoint that was copied elsewhere: the learner compares the shapes
        return
    theirs, ours = (to_dict(c)["model"] for c in (from_toml(settings), config))
    apart = [f"model.{name} {theirs[name]!r}, not {ours[name]!r}" for name in ours if theirs[name] != ours[name]]
    if apart:
        raise ValueError(f"run.init-from {config.run.init_from}: another network: its {', its '.join(apart)}")


def check_device(setting: str, name: str, signs: Iterable[str] | None = None) -> None:
    """ValueError for CUDA on a machine without a sign of a GPU."""
    if name.startswith("cuda") and not shows_gpu(signs):
        raise ValueError(f"{setting} {name}: this machine shows no GPU; use cpu or auto (sfactory doctor says more)")
