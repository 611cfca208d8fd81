"""Rooflines that `sfactory bench` measured on this machine, remembered in the user's cache folder.

Measuring a roofline takes seconds of all cores, so training does not do it: it looks up what `sfactory bench` stored for
the same workload.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from sfactory.config import Config
from sfactory.device.machine import cores, processor, shows_gpu


def rooflines_file() -> Path:
    """Where rooflines are remembered."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "sfactory" / "rooflines.json"


def workload(config: Config) -> str:
    """What the cost of a step depends on, as one line: another line, another roofline."""
    run = config.run
    depends = {
        "env": [config.env.name, config.env.arguments, config.sampling.envs_per_group],
        "model": asdict(config.model),
        "learning": [config.batch.epochs, config.optimizer_steps_per_update > 1, config.run.precision],
        "machine": [processor(), cores(), run.device, shows_gpu()],
    }
    return json.dumps(depends, sort_keys=True, default=str)


def remember_roofline(config: Config, steps_per_second: float) -> None:
    """Keep what was measured. A cache that cannot be written is no reason to fail."""
    file = rooflines_file()
    known = _read(file) | {workload(config): round(steps_per_second, 1)}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(known, indent=1) + "\n")
        temporary.replace(file)


def known_roofline(config: Config) -> float | None:
    """Steps per second that this machine could do at the most, if `sfactory bench` has measured it."""
    found = _read(rooflines_file()).get(workload(config))
    return float(found) if isinstance(found, int | float) and found > 0 else None


def _read(file: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return found
    return {}
