"""`sfactory info`: what a run or a checkpoint is, and whether every byte of it is as it was written.

Only JSON, TOML and the headers of safetensors are read: a stranger's file is opened without running anything of it, and
without its environment or torch.
"""

from __future__ import annotations

import json
import struct
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfactory.config.toml_file import from_toml
from sfactory.errors import CheckpointError, NoCheckpointError
from sfactory.run import checkpoint
from sfactory.run.checkpoint import MANIFEST

LONGEST_HEADER = 100 * 2**20  # of a safetensors file, in bytes, as its own library has it


@dataclass
class Info:
    """One checkpoint. What could not be read is empty, and `wrong` says why."""

    path: str
    wrong: str = ""
    """Empty: every byte is as it was written."""
    written: float = 0.0
    """Seconds since 1970, by the manifest's own date."""
    versions: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    """Name -> bytes."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Module -> numbers in it."""
    task: dict[str, Any] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    """The run's other checkpoints -> what is wrong with them, or nothing."""

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "verified": not self.wrong, "bytes": sum(self.files.values())}

    def report(self) -> str:
        """For people."""
        version, state, task = self.versions, self.state, self.task
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.written)) if self.written else "unknown"
        rows = [("checkpoint", self.path), ("verified", f"no: {self.wrong}" if self.wrong else "yes, every byte")]
        if version:
            made = f"format {version['format']}, by sfactory {version['sfactory']} and torch {version['torch']}"
            rows.append(("written", f"{when}; {made}"))
        if task:
            rows.append(("task", f"{task['env']}  {task['settings']}".rstrip()))
            rows.append(("protocol", task["protocol"] or "the family's own"))
        if state:
            counts = [f"{state[k]:,} {k.replace('_', ' ')}" for k in COUNTS if isinstance(state.get(k), int)]
            rows.append(("trained", ", ".join(counts)))
        if isinstance(state.get("seconds"), int | float):
            rows.append(("time", f"{state['seconds']:,.0f} s of training"))
        if self.parameters:
            rows.append(("parameters", f"{sum(self.parameters.values()):,}"))
            rows += [("", f"{count:>12,}  {name}") for name, count in self.parameters.items()]
        if self.files:
            rows.append(("files", f"{sum(self.files.values()):,} bytes"))
            rows += [("", f"{size:>12,}  {name}") for name, size in self.files.items()]
        for number, (name, wrong) in enumerate(self.others.items()):
            rows.append(("others" if not number else "", f"{name}  {f'damaged: {wrong}' if wrong else 'good'}"))
        lines = [f"{name:12}{text}".rstrip() for name, text in rows]
        return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)  # a stranger's words


COUNTS = ("env_steps", "frames", "updates", "episodes")


def info(path: Path) -> Info:
    """What lies in the folder of a checkpoint, or in the newest one of a run that is good. Nothing is moved or written.

    Raises CheckpointError where there is nothing that says it is one.
    """
    if path.is_file():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder with {MANIFEST}")
    if (path / MANIFEST).exists():
        run_dir, found = path.resolve().parent.parent, Info(str(path), _wrong(path))
        places = [p for p in checkpoint.candidates(run_dir) if p.resolve() != path.resolve()]
    else:
        run_dir, places = path, checkpoint.candidates(path)
        if not places:
            raise NoCheckpointError(f"{path} holds no checkpoint, and is none ({MANIFEST} is missing)")
        first = next((p for p in places if not _wrong(p)), places[0])
        found = Info(str(first), _wrong(first))
        places.remove(first)
    found.others = {p.name: _wrong(p) for p in places}
    found.others |= {f"corrupt/{p.name}": _wrong(p) for p in sorted((run_dir / "corrupt").glob("*")) if p.is_dir()}
    _read(Path(found.path), found)
    _read_settings(run_dir, found)
    return found


def _wrong(path: Path) -> str:
    try:
        checkpoint.verify(path)
    except CheckpointError as error:
        return str(error)
    return ""


def _read(path: Path, found: Info) -> None:
    """Everything that can be read, damaged or not; what cannot is left empty."""
    found.files = {p.name: p.stat().st_size for p in sorted(path.iterdir()) if p.is_file()}
    manifest = _json(path / MANIFEST)
    if manifest:
        found.versions = {key: manifest.get(key) for key in ("format", "sfactory", "torch")}
        found.written = (path / MANIFEST).stat().st_mtime
    found.state = _json(path / "state.json")
    for name, shape in _shapes(path / "model.safetensors").items():
        module = _module(name)
        count = 1
        for size in shape:
            count *= size
        found.parameters[module] = found.parameters.get(module, 0) + count


def _module(name: str) -> str:
    """`trunk.encoders.0.conv.weight` -> `trunk.encoders.0`; `policy_head.bias` -> `policy_head`."""
    parts = name.split(".")[:-1] or [name]
    return ".".join(parts[: 3 if "encoders" in parts else 2])


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text()) if path.is_file() else {}  # no pipe, which would never end
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape, from the header of a safetensors file: 8 bytes of length, then JSON."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
        tensors = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        return {n: s for n, s in tensors.items() if isinstance(s, list) and all(isinstance(x, int) for x in s)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
        return {}


def _read_settings(run_dir: Path, found: Info) -> None:
    said = {key: str(found.state.get(key) or "") for key in ("env", "protocol")}
    try:
        env = from_toml(run_dir / "config.toml").env
        settings = " ".join(f"{key}={value}" for key, value in env.settings.items())
        found.task = {"env": env.name, "protocol": said["protocol"] or env.protocol, "settings": settings}
    except (ValueError, TypeError):  # a checkpoint that was copied elsewhere, or of another version
        if said["env"]:
            found.task = {**said, "settings": ""}
