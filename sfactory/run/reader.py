"""Read a run folder: settings, metrics as columns, status. Writes nothing and accepts what a killed run left.

Columns have one value per row over strictly increasing env steps; NaN where a row has no value.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.config import Config, to_dict, with_settings
from sfactory.config.parsing import flag_name
from sfactory.config.tables import PLACEHOLDERS
from sfactory.config.toml_file import from_toml
from sfactory.config.values import as_text
from sfactory.monitor.rows import METRICS_FILE, parse_row
from sfactory.run.folder import supervisor_is_running

STATUS_FILE = "status.json"
NOT_LEARNING = (
    "run.dir", "run.seed", "run.debug", "run.inference_workers", "run.requeue", "run.spare_restarts",
    "run.stall_timeout", "log.", "checkpoint.", "stop.", "env.step_timeout", "env.build_timeout", "env.fault_budget",
    "env.protocol", "eval.num_envs",
)  # fmt: skip
"""Settings that do not change what is learned at a given step. Lengths of runs may differ: curves are cut to the
shortest; only a linear learning rate depends on the end from the start. Protocols are compared elsewhere."""


@dataclass(frozen=True)
class RunFolder:
    """Contents of one run folder. rows: metric -> [rows], including `env_steps` and `seconds`."""

    path: Path
    config: Config
    status: dict[str, Any]
    rows: dict[str, np.ndarray]
    unreadable_lines: int
    """Lines of metrics.jsonl that are no rows."""

    @cached_property
    def state(self) -> str:
        """running | killed | unknown, or the outcome: finished, interrupted, worker lost, ..."""
        return run_state(self.path, self.status, default="unknown")

    @property
    def alive(self) -> bool:
        """Whether its supervisor is still running."""
        return self.state == "running"

    @cached_property
    def protocol(self) -> str:
        """Protocol in the newest readable checkpoint: rules of the (first) task as it was trained; empty if none."""
        for file in sorted(self.path.glob("checkpoints/[0-9]*/state.json"), reverse=True):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                return str(json.loads(file.read_text()).get("protocol", ""))
        return ""

    def column(self, name: str) -> np.ndarray:
        """Values of a metric, [rows]; NaN where missing."""
        return self.rows.get(name, np.full(len(self.rows["env_steps"]), np.nan))

    def settings(self) -> dict[str, Any]:
        """Dotted name -> value of the settings that change what is learned."""
        return learning_settings(self.config)


def read_run(path: Path) -> RunFolder:
    """Read a run folder. ValueError if `path` is none or its settings cannot be read."""
    path = Path(path)
    if not (path / "config.toml").is_file():
        problem = "holds no run (no config.toml)" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {problem}")
    rows, unreadable = read_columns(path / METRICS_FILE)
    return RunFolder(path, from_toml(path / "config.toml"), read_status(path), rows, unreadable)


def read_status(run_dir: Path) -> dict[str, Any]:
    """status.json; empty if it is missing or unreadable."""
    with contextlib.suppress(OSError, ValueError):
        status = json.loads((run_dir / STATUS_FILE).read_text())
        return status if isinstance(status, dict) else {}
    return {}


def status_written_at(run_dir: Path) -> float:
    """Modification time of status.json, in seconds since the epoch; 0 if it is missing."""
    with contextlib.suppress(OSError):
        return (run_dir / STATUS_FILE).stat().st_mtime
    return 0.0


def run_state(run_dir: Path, status: dict[str, Any], default: str) -> str:
    """State in status.json, or `default`; `killed` if it is running and its supervisor is not."""
    state = str(status.get("state", default))
    if state == "running" and "state" in status:
        return state if supervisor_is_running(status.get("pid"), status_written_at(run_dir)) else "killed"
    return state


def read_columns(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Columns of a metrics.jsonl, and its number of unreadable lines.

    A row at or before the step of earlier rows replaces them: the run was resumed from an older checkpoint by hand.
    """
    kept: list[dict[str, float]] = []
    unreadable = 0
    lines: Iterable[str] = ()
    with contextlib.suppress(FileNotFoundError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        row = _numbers(line)
        if row is None:
            unreadable += bool(line.strip())
            continue
        while kept and kept[-1]["env_steps"] >= row["env_steps"]:
            kept.pop()
        kept.append(row)
    names = dict.fromkeys(name for row in kept for name in row) or dict.fromkeys(("env_steps", "seconds"))
    return {name: np.array([row.get(name, np.nan) for row in kept], float) for name in names}, unreadable


def _numbers(line: str) -> dict[str, float] | None:
    """One line of metrics.jsonl with NaN for null; None if it is no row of numbers with `seconds`."""
    row = parse_row(line)
    if row is None or "seconds" not in row:
        return None
    try:
        return {name: float("nan") if value is None else float(value) for name, value in row.items()}
    except (ValueError, TypeError):
        return None


def expand_folders(paths: list[Path]) -> list[Path]:
    """Replace each folder of runs (of a sweep) by the runs in it, and drop duplicates. Other paths stay as they are."""
    expanded: list[Path] = []
    for path in paths:
        if (path / "config.toml").is_file():
            expanded.append(path)
        else:
            inside = sorted((file.parent for file in path.glob("*/config.toml")), key=natural_key)
            expanded += inside or [path]
    unique: dict[Path, Path] = {}  # by resolved path: the same run twice would count as two seeds
    for path in expanded:
        unique.setdefault(path.resolve(), path)
    return list(unique.values())


def natural_key(path: Path) -> list[Any]:
    """Sort key that puts s2 before s10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def flat_settings(config: Config) -> dict[str, Any]:
    """Dotted name -> value of every setting, one entry per value in the tables of the environment's arguments."""
    flat: dict[str, Any] = {}
    for section, values in to_dict(config).items():
        for key, value in values.items():
            name = f"{section}.{key}"
            if name in PLACEHOLDERS:
                for inner, item in value.items():
                    flat.update(_flat(f"{name}.{inner}", item))
            else:
                flat[name] = value
    return flat


def _flat(name: str, value: Any) -> dict[str, Any]:
    """The values of nested tables by dotted name; an empty table is a value."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {inner: item for key in value for inner, item in _flat(f"{name}.{key}", value[key]).items()}


def learning_settings(config: Config) -> dict[str, Any]:
    """Dotted name -> value of the settings that change what is learned at a given step.

    The environments are counted as those of one sampler with a group per task: how many samplers and groups share them
    depends on the machine (`sampling.num_samplers 0`).
    """
    if not config.batch.slots:
        groups = len(config.env.tasks)
        one = {"num_samplers": 1, "groups_per_sampler": groups, "envs_per_group": config.sampling.num_envs // groups}
        config = with_settings(config, {f"sampling.{name}": value for name, value in one.items()})
    length_matters = config.optim.schedule == "linear"
    return {
        name: value
        for name, value in flat_settings(config).items()
        if not name.startswith(NOT_LEARNING) or (length_matters and name == "stop.env_steps")
    }


def format_value(value: Any) -> str:
    """Value of a setting as text: 1e-3, 2.5e-4, 0.95, 64,64."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return as_text(value)
    if isinstance(value, tuple | list):
        return ",".join(map(format_value, value))
    if not isinstance(value, float):
        return str(value)
    if value and not 1e-2 <= abs(value) < 1e5 and np.isfinite(value):
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.6g}"


def format_setting(name: str, value: Any) -> str:
    """optim.lr=1e-3."""
    return f"{flag_name(name)}={format_value(value)}"
