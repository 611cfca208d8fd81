"""Describe a run or checkpoint and verify its checksums.

Reads only JSON, TOML and safetensors headers: files of unknown origin are never executed, and neither their environment
nor torch is needed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfactory.config.toml_file import from_toml
from sfactory.config.values import as_text
from sfactory.errors import CheckpointError, FileRefused, NoCheckpointError
from sfactory.files import folder_entries, is_file, is_folder, open_to_read
from sfactory.monitor.format import printable
from sfactory.run import checkpoint, provenance
from sfactory.run.checkpoint import LOCKSTEP, MANIFEST
from sfactory.run.checkpoint_files import read_manifest
from sfactory.run.obs_reading import KEY as OBSERVATIONS
from sfactory.run.pool_files import is_pool_state
from sfactory.run.recorded_spec import KEY as SPEC
from sfactory.run.tensor_file import LONGEST_HEADER, TensorEntry, TensorFileError, read_header


@dataclass
class Info:
    """Description of one checkpoint. Fields that could not be read are empty; `wrong` holds the reason."""

    path: str
    wrong: str = ""
    """Why verification failed; empty if all checksums match."""
    written: float = 0.0
    """Modification time of the manifest, in seconds since 1970."""
    versions: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    """Name -> bytes."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Module -> number of parameters."""
    task: dict[str, Any] = field(default_factory=dict)
    launches: list[dict[str, Any]] = field(default_factory=list)
    """Where and how the run was started, oldest first (`sfactory.run.provenance`)."""
    others: dict[str, str] = field(default_factory=dict)
    """Other checkpoints of the run -> why verification failed, or an empty string."""

    def as_dict(self) -> dict[str, Any]:
        """Return the description, for --json."""
        return {**asdict(self), "verified": not self.wrong, "bytes": sum(self.files.values())}

    def report(self) -> str:
        """Return the description as text, without unprintable characters."""
        version, state, task = self.versions, self.state, self.task
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.written)) if self.written else "unknown"
        rows = [("checkpoint", self.path), ("verified", f"no: {self.wrong}" if self.wrong else "yes, every byte")]
        if version:
            made = f"format {version['format']}, by sfactory {version['sfactory']} and torch {version['torch']}"
            rows.append(("written", f"{when}; {made}"))
        if task:
            rows.append(("task", f"{task['env']}  {task['settings']}".rstrip()))
            rows.append(("protocol", task["protocol"] or "the family's own"))
        observations = state.get(OBSERVATIONS)
        for number, line in enumerate(observations if isinstance(observations, list) else []):
            rows.append(("" if number else "reads", str(line)))
        if state:
            names = COUNTS_OF_AGENTS if _has_agents(state) else COUNTS
            counts = [f"{state[k]:,} {name}" for k, name in names.items() if isinstance(state.get(k), int)]
            if "episodes" in state:  # not in those of earlier versions
                counts.append(f"{state['episodes']['count']:,} episodes")
            rows.append(("trained", ", ".join(counts)))
        if isinstance(state.get("seconds"), int | float):
            rows.append(("time", f"{state['seconds']:,.0f} s of training"))
        if isinstance(state.get("held_slots"), int | float):
            rows.append(("replay", f"{state['held_slots']:,.0f} slots held, in {LOCKSTEP}"))
        rows += _opponents(state.get("selfplay"))
        if self.launches:
            rows += provenance.rows(self.launches[0])
            if len(self.launches) > 1:
                last = dict(provenance.rows(self.launches[-1]))
                newest = ", ".join(last[name] for name in ("started", "command", "code", "host") if name in last)
                count = len(self.launches) - 1
                rows.append(("resumed", f"{'once' if count == 1 else f'{count:,} times'}, the last: {newest}"))
        if self.parameters:
            rows.append(("parameters", f"{sum(self.parameters.values()):,}"))
            rows += [("", f"{count:>12,}  {name}") for name, count in self.parameters.items()]
        if self.files:
            rows.append(("files", f"{sum(self.files.values()):,} bytes"))
            rows += [("", f"{size:>12,}  {name}") for name, size in self.files.items()]
        for number, (name, wrong) in enumerate(self.others.items()):
            rows.append(("others" if not number else "", f"{name}  {f'damaged: {wrong}' if wrong else 'good'}"))
        return "\n".join(printable(f"{name:12}{text}".rstrip()).replace("\n", "\\n") for name, text in rows)


def _has_agents(state: Mapping[str, Any]) -> bool:
    """Whether the environment of a checkpoint has several agents, by its recorded spec."""
    spec = state.get(SPEC)
    return isinstance(spec, Mapping) and bool(spec.get("agents"))


def _opponents(selfplay: Any) -> list[tuple[str, str]]:
    """Lines about the pool of opponents that a checkpoint's state describes."""
    if not is_pool_state(selfplay):
        return []
    rows = [("self-play", f"Elo {selfplay['rating']:.0f} after {selfplay['games']:,} games against opponents")]
    for one in selfplay["opponents"]:
        if not one["retired"]:
            results = f"{one['wins']:,} won, {one['draws']:,} drawn, {one['losses']:,} lost"
            rows.append(("", f"{one['rating']:>6.0f}  {one['name']}: {results}"))
    return rows


COUNTS = {"env_steps": "env steps", "frames": "frames", "updates": "updates"}
"""Entry of the state -> its name in the report."""
COUNTS_OF_AGENTS = {"env_steps": "agent steps", "environment_steps": "env steps", "updates": "updates"}
"""The same where an environment has several agents."""


def info(path: Path) -> Info:
    """Describe a checkpoint folder, or the newest undamaged checkpoint of a run. Writes and moves nothing.

    Raises CheckpointError if the path is neither.
    """
    if path.is_file():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder with {MANIFEST}")
    if (path / MANIFEST).exists():
        run_dir = path.resolve().parent.parent
        others = checkpoint.from_candidates(run_dir, _all_wrong)
        wrong = others.pop(path.resolve()) if path.resolve() in others else _wrong(path)
        first = path
    else:
        run_dir, others = path, checkpoint.from_candidates(path, _all_wrong)
        if not others:
            raise NoCheckpointError(f"{path} is no checkpoint ({MANIFEST} is missing) and contains none")
        first = next((p for p in others if not others[p]), next(iter(others)))
        wrong = others.pop(first)
    found = Info(str(first), wrong)
    found.others = {p.name: reason for p, reason in others.items()}
    found.others |= {f"corrupt/{p.name}": _wrong(p) for p in folder_entries(run_dir / "corrupt") if is_folder(p)}
    _read(Path(found.path), found)
    _read_settings(run_dir, found)
    found.launches = provenance.read(run_dir)
    return found


def _wrong(path: Path) -> str:
    try:
        checkpoint.verify(path)
    except (CheckpointError, FileRefused, OSError) as error:
        return str(error)
    return ""


def _all_wrong(places: list[Path]) -> dict[Path, str]:
    """What is wrong with each checkpoint, in the order of the list."""
    return {path: _wrong(path) for path in places}


def _read(path: Path, found: Info) -> None:
    """Read as much as possible, also from a damaged checkpoint."""
    found.files = {p.name: p.lstat().st_size for p in folder_entries(path) if is_file(p)}
    with contextlib.suppress(CheckpointError, FileRefused, OSError):
        manifest = read_manifest(path)
        found.versions = {key: manifest[key] for key in ("format", "sfactory", "torch")}
        found.written = (path / MANIFEST).lstat().st_mtime
    with contextlib.suppress(CheckpointError, FileRefused, OSError):
        found.state = checkpoint.read_state(path)
    for name, entry in _tensors(path / "model.safetensors").items():
        module = _module(name)
        found.parameters[module] = found.parameters.get(module, 0) + math.prod(entry.shape)


def _module(name: str) -> str:
    """Return the module of a parameter: `trunk.encoders.0.conv.weight` -> `trunk.encoders.0`."""
    parts = name.split(".")[:-1] or [name]
    return ".".join(parts[: 3 if "encoders" in parts else 2])


def _tensors(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a file by name, from its header; none if it cannot be read."""
    try:
        with open_to_read(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            return read_header(file.read(8 + LONGEST_HEADER), size)
    except (OSError, FileRefused, TensorFileError):
        return {}


def _read_settings(run_dir: Path, found: Info) -> None:
    state = {key: str(found.state.get(key) or "") for key in ("env", "protocol")}
    try:
        env = from_toml(run_dir / "config.toml").env
        settings = " ".join(f"{key}={as_text(value)}" for key, value in env.settings.items())
        found.task = {"env": env.name, "protocol": state["protocol"] or env.protocol, "settings": settings}
    except (ValueError, TypeError):  # a checkpoint copied without its run, or of another version
        if state["env"]:
            found.task = {**state, "settings": ""}
