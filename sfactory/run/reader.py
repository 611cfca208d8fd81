"""Read a run folder: settings, metrics as columns, status. Writes nothing and accepts what a killed run left.

Columns have one value per row over strictly increasing env steps; NaN where a row has no value.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.config import Config, to_dict, with_settings
from sfactory.config.parsing import flag_name
from sfactory.config.resume_rules import ends_at_env_steps
from sfactory.config.tables import PLACEHOLDERS
from sfactory.config.toml_file import from_toml
from sfactory.config.values import as_text
from sfactory.errors import FileRefused
from sfactory.files import MiB, open_to_read, read_text
from sfactory.monitor.rows import LARGEST, METRICS_FILE, MOST_VALUES, is_number, lines_of, parse_row
from sfactory.run.checkpoint import from_candidates
from sfactory.run.checkpoint_files import read_state
from sfactory.run.folder import locking_process, require_config_file, supervisor_is_running

STATUS_FILE = "status.json"
STATUS_NUMBERS = ("pid", "env_steps", "updates", "seconds", "exit", "training_return")
MOST_METRICS = 1024 * MiB
"""Bytes of a metrics.jsonl that is read; ten days of training write half of it."""
NOT_LEARNING = (
    "run.dir", "run.seed", "run.debug", "run.inference_workers", "run.requeue", "run.spare_restarts",
    "run.stall_timeout", "log.", "checkpoint.", "stop.", "env.step_timeout", "env.build_timeout", "env.fault_budget",
    "env.protocol", "env.info_keys", "eval.num_envs",
)  # fmt: skip
"""Settings that do not change what is learned at a given step. Lengths of runs may differ: curves are cut to the
shortest; only a linear learning rate depends on the end from the start. Protocols are compared elsewhere."""


WHEN_EVALUATED = ("eval.every", "eval.video")
"""Settings that change no value of a curve, only where it has points and what is filmed."""


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
        return run_state(self.path, self.status)

    @property
    def alive(self) -> bool:
        """Whether its supervisor is still running."""
        return self.state == "running"

    @cached_property
    def protocol(self) -> str:
        """Protocol in the newest readable checkpoint: rules of the (first) task as it was trained; empty if none."""
        return from_candidates(self.path, _protocol_of)

    def column(self, name: str) -> np.ndarray:
        """Values of a metric, [rows]; NaN where missing."""
        return self.rows.get(name, np.full(len(self.rows["env_steps"]), np.nan))

    def settings(self) -> dict[str, Any]:
        """Dotted name -> value of the settings that change what is learned, or what an evaluation measures."""
        return {name: value for name, value in learning_settings(self.config).items() if name not in WHEN_EVALUATED}


def _protocol_of(listed: list[Path]) -> str:
    """As `RunFolder.protocol`, of these checkpoints, newest first."""
    for path in listed:
        with contextlib.suppress(OSError, ValueError):
            return str(read_state(path).get("protocol", ""))
    return ""


def read_run(path: Path) -> RunFolder:
    """Read a run folder. ValueError if `path` is none, its settings cannot be read, or a file of it is a link."""
    path = Path(path)
    require_config_file(path)
    rows, unreadable = read_columns(path / METRICS_FILE)
    return RunFolder(path, from_toml(path / "config.toml"), read_status(path), rows, unreadable)


def read_status(run_dir: Path) -> dict[str, Any]:
    """status.json without values of wrong types; empty if it is missing or unreadable. FileRefused if it is a link."""
    try:
        status = json.loads(read_text(run_dir / STATUS_FILE, MiB))
    except FileRefused:
        raise
    except (OSError, ValueError, RecursionError):
        return {}
    return _known_types(status, STATUS_NUMBERS) if isinstance(status, dict) else {}


def _known_types(table: dict[str, Any], numbers: Sequence[str]) -> dict[str, Any]:
    """The entries whose values are texts, finite numbers, or tables of these. numbers: entries that are numbers."""
    known: dict[str, Any] = {}
    for name, value in table.items():
        if is_number(value):
            if -LARGEST < value < LARGEST:
                known[name] = value
        elif name in numbers:
            continue
        elif value is None or isinstance(value, bool):
            known[name] = value
        elif isinstance(value, str):
            known[name] = value.encode("utf-8", "backslashreplace").decode()  # JSON can hold half a character
        elif isinstance(value, dict):
            known[name] = {key: x for key, x in value.items() if is_number(x) and -LARGEST < x < LARGEST}
    return known


def status_written_at(run_dir: Path) -> float:
    """Modification time of status.json, in seconds since the epoch; 0 if it is missing."""
    with contextlib.suppress(OSError):
        return (run_dir / STATUS_FILE).stat().st_mtime
    return 0.0


def run_state(run_dir: Path, status: dict[str, Any]) -> str:
    """State in status.json; `killed` if it is running and its supervisor is not. Without a state running or unknown."""
    if "state" not in status:  # it has not been written yet
        return "running" if supervisor_is_running(run_dir, locking_process(run_dir)) else "unknown"
    state = str(status["state"])
    if state == "running":
        return state if supervisor_is_running(run_dir, status.get("pid")) else "killed"
    return state


def read_columns(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Columns of a metrics.jsonl, and its number of unreadable lines.

    A row at or before the step of earlier rows replaces them: the run was resumed from an older checkpoint by hand.
    """
    kept: list[dict[str, float]] = []
    unreadable = 0
    with contextlib.suppress(FileNotFoundError), open_to_read(path, MOST_METRICS) as file:
        for line in lines_of(file):
            row = _numbers(line)
            if row is None:
                unreadable += bool(line.strip())
                continue
            while kept and kept[-1]["env_steps"] >= row["env_steps"]:
                kept.pop()
            kept.append(row)
    names = list(dict.fromkeys(name for row in kept for name in row)) or ["env_steps", "seconds"]
    return {n: np.array([row.get(n, np.nan) for row in kept], float) for n in names[:MOST_VALUES]}, unreadable


def _numbers(line: str) -> dict[str, float] | None:
    """One line of metrics.jsonl with NaN for null; None if it is no row of numbers with `seconds`."""
    row = parse_row(line)
    if row is None or "seconds" not in row:
        return None
    return {name: float("nan") if value is None else float(value) for name, value in row.items()}


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
    parts = re.split(r"([0-9]+)", str(path))
    return [(len(part.lstrip("0")), part) if number % 2 else (0, part) for number, part in enumerate(parts)]


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
    length_matters = ends_at_env_steps(config)
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
