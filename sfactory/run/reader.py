"""A run folder, read: settings, rows of metrics, how it ended. Reads what a kill left behind; writes nothing.

Rows are kept as columns over one strictly increasing axis of env steps. A torn last row, a null and a metric that
began late are NaN, so that every column has one number per row.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.config import Config, to_dict
from sfactory.config.parsing import flag_name
from sfactory.config.toml_file import from_toml
from sfactory.run.folder import supervised

IRRELEVANT = (
    "run.dir", "run.seed", "run.debug", "run.requeue", "run.spare_restarts", "run.stall_timeout", "log.", "checkpoint.",
    "stop.", "env.step_timeout", "env.fault_budget", "env.protocol",
)  # fmt: skip
"""Settings that do not change what is learnt at a given step. Lengths differ freely: curves are cut where the
shortest ends; only a linear learning rate knows its end from the beginning. Protocols are held together elsewhere."""


@dataclass(frozen=True)
class RunFolder:
    """What lies in one folder. rows: metric -> [rows], with `env_steps` and `seconds` among them."""

    path: Path
    config: Config
    status: dict[str, Any]
    rows: dict[str, np.ndarray]
    torn: int
    """Lines of metrics.jsonl that were no rows."""

    @property
    def state(self) -> str:
        """running | killed | unknown, or the word it ended with: finished, interrupted, worker lost, ..."""
        state = str(self.status.get("state", "unknown"))
        return "killed" if state == "running" and not self.alive else state

    @cached_property
    def alive(self) -> bool:
        """Its supervisor still runs."""
        if self.status.get("state") != "running":
            return False
        with contextlib.suppress(OSError):
            return supervised(self.status.get("pid"), (self.path / "status.json").stat().st_mtime)
        return False

    @cached_property
    def protocol(self) -> str:
        """What the newest checkpoint is stamped with: the rules of the (first) task as they were played. Or empty."""
        for file in sorted(self.path.glob("checkpoints/[0-9]*/state.json"), reverse=True):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                return str(json.loads(file.read_text()).get("protocol", ""))
        return ""

    def column(self, name: str) -> np.ndarray:
        """[rows], NaN where there is nothing."""
        return self.rows.get(name, np.full(len(self.rows["env_steps"]), np.nan))

    def settings(self) -> dict[str, Any]:
        """Dotted name -> value, of all settings that matter for what is learnt."""
        return relevant(self.config)


def relevant(config: Config) -> dict[str, Any]:
    """Dotted name -> value, of all settings that matter for what is learnt at a given step."""
    ends = config.optim.schedule == "linear"
    return {
        name: value for name, value in flat(config).items()
        if not name.startswith(IRRELEVANT) or (ends and name == "stop.env_steps")
    }  # fmt: skip


def read(path: Path) -> RunFolder:
    """Read a run. Raises ValueError with one line if `path` holds none, or if its settings cannot be read."""
    path = Path(path)
    if not (path / "config.toml").is_file():
        what = "holds no run (no config.toml)" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {what}")
    rows, torn = read_rows(path / "metrics.jsonl")
    return RunFolder(path, from_toml(path / "config.toml"), read_status(path), rows, torn)


def expand(paths: list[Path]) -> list[Path]:
    """A folder of runs (a sweep's) stands for the runs in it; everything else, missing ones too, for itself."""
    found: list[Path] = []
    for path in paths:
        if (path / "config.toml").is_file():
            found.append(path)
        else:
            inside = sorted((file.parent for file in path.glob("*/config.toml")), key=natural)
            found += inside or [path]
    seen: set[Path] = set()  # the same run twice would count as two seeds
    return [p for p in found if not (p.resolve() in seen or seen.add(p.resolve()))]  # type: ignore[func-returns-value]


def natural(path: Path) -> list[Any]:
    """A key that sorts s2 before s10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def read_status(path: Path) -> dict[str, Any]:
    """status.json, or nothing."""
    with contextlib.suppress(OSError, ValueError):
        status = json.loads((path / "status.json").read_text())
        return status if isinstance(status, dict) else {}
    return {}


def read_rows(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Columns of metrics.jsonl, and the number of lines that were no rows.

    A row at a step that was passed before begins anew from there: so does a run that was resumed by hand.
    """
    kept: list[dict[str, float]] = []
    torn = 0
    with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                row = {name: float("nan") if value is None else float(value) for name, value in row.items()}
                step = row["env_steps"]
                row["seconds"]
            except (ValueError, KeyError, TypeError, AttributeError):
                torn += bool(line.strip())
                continue
            while kept and kept[-1]["env_steps"] >= step:
                kept.pop()
            kept.append(row)
    names = dict.fromkeys(name for row in kept for name in row) or dict.fromkeys(("env_steps", "seconds"))
    return {name: np.array([row.get(name, np.nan) for row in kept], float) for name in names}, torn


def flat(config: Config) -> dict[str, Any]:
    """Dotted name -> value of every setting; those of the environment one by one."""
    found: dict[str, Any] = {}
    for section, values in to_dict(config).items():
        for key, value in values.items():
            if isinstance(value, dict):
                found.update({f"{section}.{key}.{k}": v for k, v in value.items()})
            else:
                found[f"{section}.{key}"] = tuple(value) if isinstance(value, list) else value
    return found


def written(value: Any) -> str:
    """A value as people write it: 1e-3, 2.5e-4, 0.95, 64,64."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(written, value))
    if not isinstance(value, float):
        return str(value)
    if value and not 1e-2 <= abs(value) < 1e5 and np.isfinite(value):
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.6g}"


def named(name: str, value: Any) -> str:
    """optim.lr=1e-3."""
    return f"{flag_name(name)}={written(value)}"
