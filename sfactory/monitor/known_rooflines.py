"""Rooflines measured by `sfactory bench` on this machine, kept in the user's cache folder.

Of the three lines of `sfactory.tools.roofline` this is "torch, best batch": it depends on the fewest settings of a run.
Measuring a roofline takes seconds of all cores, so training does not measure it: it reads what `sfactory bench` stored
for the same workload.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from sfactory.config import Config
from sfactory.device.machine import cores, processor, shows_gpu, user_cache

LINE = "torch, best batch, median"  # a stored value of another kind of roofline has another key


def rooflines_file() -> Path | None:
    """File of stored rooflines; None for a user without a cache folder."""
    cache = user_cache()
    return None if cache is None else cache / "sfactory" / "rooflines.json"


def workload(config: Config) -> str:
    """Key of a stored roofline: everything the cost of a step depends on, as one line of JSON."""
    run = config.run
    replay = {"replay": config.replay.ratio} if config.replay.ratio else {}
    key = {
        "roofline": LINE,
        "env": [config.env.name, config.env.options.as_dict(), config.sampling.envs_per_group],
        "model": asdict(config.model),
        "learning": [config.passes_over_batch, config.starts_with_forward_pass, config.run.precision],
        **replay,
        "machine": [processor(), cores(), run.device, shows_gpu()],
    }
    return json.dumps(key, sort_keys=True, default=str)


def store_roofline(config: Config, steps_per_second: float) -> None:
    """Store a measured roofline. A cache that cannot be written is ignored."""
    file = rooflines_file()
    if file is None:
        return
    stored = _read(file) | {workload(config): round(steps_per_second, 1)}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(stored, indent=1) + "\n")
        temporary.replace(file)


def known_roofline(config: Config) -> float | None:
    """Highest speed of this machine in steps per second, if `sfactory bench` has measured it."""
    speed = _read(rooflines_file()).get(workload(config))
    return float(speed) if isinstance(speed, int | float) and speed > 0 else None


def _read(file: Path | None) -> dict[str, object]:
    if file is None:
        return {}
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads(file.read_text())
        if isinstance(stored, dict):
            return stored
    return {}
