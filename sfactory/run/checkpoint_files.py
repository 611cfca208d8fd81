"""Read one checkpoint: verify every byte, check the contents, load tensors. Only safetensors and JSON: no code runs.

Format: `run.checkpoint`. Everything is read from one opening of the files, so that a checkpoint that the run prunes
meanwhile is read to its end, and what was checked is what is loaded. A checkpoint may come from a stranger, with a
manifest that fits: sizes, types and finiteness are checked before anything is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from sfactory.errors import CheckpointError, FileRefused
from sfactory.files import MiB, open_to_read, read_bytes
from sfactory.monitor.episodes import is_episodes
from sfactory.monitor.rows import is_count, is_number
from sfactory.run.obs_reading import KEY as OBSERVATIONS
from sfactory.run.saved_counters import check_counters
from sfactory.run.tensor_file import TensorEntry, TensorFileError, first_not_finite, read_header

if TYPE_CHECKING:  # the supervisor reads checkpoints and must not import torch
    import torch

FORMAT = 1
PARTS = ("model", "proximal", "optimizer", "normalizers")
MANIFEST = "manifest.json"
LOCKSTEP = "lockstep.npz"
STATE = "state.json"
LONGEST_JSON = 16 * MiB
MOST_FILES = 64
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

NUMBERS = ("lr", "initial_lr", "training_return")
MAY_BE_NAN = ("kl", "ess")
TEXTS = ("env", "protocol", "precision", "kernels", "schedule")
"""Entries of a state that are checked if they are there."""
MOST_RANKS = 2**20
RESUMED = ("launch", "updates", "seconds", "skipped_updates", "lr", "kl", "ess")
"""Entries of a state that a resume needs as well."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are not as they were written."""


class VanishedCheckpoint(CheckpointError):
    """A checkpoint that was pruned or replaced while it was opened."""


@dataclass
class Contents:
    """Contents of a checkpoint: tensors by part and name, and a JSON-serializable state."""

    state: dict[str, Any]
    parts: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    path: Path = Path()
    lockstep: dict[str, np.ndarray] = field(default_factory=dict)
    headers: dict[str, dict[str, TensorEntry]] = field(default_factory=dict)
    """Part -> dtype and shape of its tensors, of all parts of a checkpoint that was read."""


def read(path: Path, parts: Sequence[str] = ()) -> Contents:
    """Verify a checkpoint and load some of its parts, tensors on the CPU.

    Raises DamagedCheckpoint if a byte differs from the manifest; VanishedCheckpoint if it was pruned meanwhile;
    CheckpointError if it is another format or its contents cannot be used; OSError or FileRefused if a file cannot be
    read or is no file.
    """
    with _opened(path) as (manifest, files):
        found = Contents({}, path=path)
        for name, file in files.items():
            _read_file(name, file, manifest["files"][name], parts, found)
    return found


def verify(path: Path) -> None:
    """Check every byte against the manifest, and that the contents can be used; errors as in `read`."""
    read(path)


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint has of its counters and other numbers. Checks types, but not the hash of the file."""
    return _state(read_bytes(path / STATE, LONGEST_JSON))


def require_resumable(contents: Contents) -> None:
    """CheckpointError if the state lacks what a resume needs."""
    missing = [name for name in RESUMED if name not in contents.state]
    if missing:
        raise CheckpointError(f"{STATE} has no {missing[0]}")


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """Hash of a manifest without its own hash."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


# -- opening -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, BinaryIO]]]:
    """The manifest and all files that it lists, open."""
    with contextlib.ExitStack() as stack:
        identity = _identity(path)
        try:
            manifest = read_manifest(path)
            files = {name: stack.enter_context(_open_listed(path / name, manifest)) for name in manifest["files"]}
        except (CheckpointError, OSError):
            if _identity(path) != identity:
                raise VanishedCheckpoint(f"{path.name} was pruned") from None
            raise
        if _identity(path) != identity:  # replaced by another one of the same step
            raise VanishedCheckpoint(f"{path.name} was replaced")
        yield manifest, files


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder; None if it is not there."""
    try:
        stat = folder.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, checked but for the files it lists; errors as in `read`."""
    try:
        manifest = json.loads(read_bytes(path / MANIFEST, LONGEST_JSON))
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{MANIFEST} is missing") from error
    except FileRefused:
        raise
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"manifest unreadable ({error})") from error
    if not isinstance(manifest, dict):
        raise DamagedCheckpoint("manifest damaged")
    if type(manifest.get("format")) is int and manifest["format"] != FORMAT:  # first: its hash may be another one too
        raise CheckpointError(f"format {manifest['format']}, this version reads {FORMAT}")
    if manifest.get("sha256") != manifest_sha256(manifest) or manifest.get("format") != FORMAT:
        raise DamagedCheckpoint("manifest damaged")
    _check_manifest(manifest)
    return manifest


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """CheckpointError if the manifest lists no files, other files, or sizes and hashes that are none."""
    files = manifest.get("files")
    if not isinstance(files, dict) or len(files) > MOST_FILES:
        raise CheckpointError("manifest lists no files")
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(f"manifest lists a file {name[:60]!r}")
        size, sha256 = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise CheckpointError(f"manifest does not describe {name}")
    for name in (*(f"{part}.safetensors" for part in PARTS), STATE):
        if name not in files:
            raise CheckpointError(f"{name} is not in the manifest")
    for key in ("sfactory", "torch"):
        if not isinstance(manifest.get(key), str):
            raise CheckpointError(f"manifest has no version of {key}")


def _open_listed(file: Path, manifest: Mapping[str, Any]) -> BinaryIO:
    """Open a file that has the size that the manifest says."""
    expected = manifest["files"][file.name]["size"]
    try:
        opened = open_to_read(file)
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{file.name} is missing") from None
    size = opened.seek(0, 2)
    opened.seek(0)
    if size != expected:
        opened.close()
        raise DamagedCheckpoint(f"{file.name} has {size} bytes, expected {expected}")
    return opened


# -- checking ------------------------------------------------------------------------------------------------


def _read_file(name: str, file: BinaryIO, entry: Mapping[str, Any], parts: Sequence[str], found: Contents) -> None:
    """Check one file and add it to the contents."""
    part = name.removesuffix(".safetensors")
    if name != STATE and part not in PARTS:  # lockstep.npz: read by `checkpoint.load_lockstep` only
        if hashlib.file_digest(cast(Any, file), "sha256").hexdigest() != entry["sha256"]:
            raise DamagedCheckpoint(f"{name} is damaged")
        return
    data = file.read()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DamagedCheckpoint(f"{name} is damaged")
    if name == STATE:
        found.state = _state(data)
        return
    try:
        found.headers[part] = header = read_header(data)
    except TensorFileError as error:
        raise CheckpointError(f"{name} {error}") from error
    if bad := first_not_finite(data, header):
        raise CheckpointError(f"{name} is not finite at {bad!r}")
    if part in parts:
        from safetensors.torch import load  # imports torch

        found.parts[part] = load(data)


def _state(data: bytes) -> dict[str, Any]:
    """The checked state. CheckpointError names the entry that is wrong."""
    try:
        state = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{STATE} is unreadable ({error})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{STATE} is no table")
    check_counters(state)
    for name in (*NUMBERS, *MAY_BE_NAN):
        if name in state and not (is_number(state[name]) and (name in MAY_BE_NAN or _is_finite(state[name]))):
            raise CheckpointError(f"{STATE} has no usable {name}")
    for name in TEXTS:
        if name in state and not isinstance(state[name], str):
            raise CheckpointError(f"{STATE} has no usable {name}")
    if "episodes" in state and not is_episodes(state["episodes"]):
        raise CheckpointError(f"{STATE} has no usable episodes")
    if "world_size" in state and not (is_count(state["world_size"]) and 1 <= state["world_size"] <= MOST_RANKS):
        raise CheckpointError(f"{STATE} has no usable world_size")
    lines = state.get(OBSERVATIONS, [])
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise CheckpointError(f"{STATE} has no usable {OBSERVATIONS}")
    return state


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond every float
        return False
