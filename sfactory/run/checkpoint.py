"""Checkpoint format: list, verify and load. Only safetensors and JSON: loading executes no code.

    checkpoints/000001048576/           name: trained env_steps
        model.safetensors               weights and the observation normalizer, as inference uses them
        proximal.safetensors            state of the proximal policy
        optimizer.safetensors           Adam's moments
        normalizers.safetensors         float64 statistics
        state.json                      counters, seeds and other numbers
        lockstep.npz                    lockstep only: memory, environments, unfinished windows, for an exact resume
        manifest.json                   written last: format, versions, size and SHA-256 of every file, its own hash

Every function that returns a checkpoint to load (`newest`, `best`, `resolve`) verifies it first with `verify`; `load`
and `restore_policy` expect a verified one. `candidates` lists without verifying. Writing: `run.checkpoint_writer`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfactory.errors import CheckpointError, NoCheckpointError
from sfactory.monitor.table import EPISODES_IN_MEAN
from sfactory.run.obs_reading import check_reading
from sfactory.run.saved_counters import check_counters

if TYPE_CHECKING:  # the supervisor lists checkpoints and must not import torch
    import torch

    from sfactory.config import Config
    from sfactory.envs import EnvSpec
    from sfactory.model.actor_critic import ActorCritic

FORMAT = 1
PARTS = ("model", "proximal", "optimizer", "normalizers")
MANIFEST = "manifest.json"
LOCKSTEP = "lockstep.npz"
STATE = "state.json"


@dataclass
class Contents:
    """Contents of a checkpoint: tensors by part and name, and a JSON-serializable state."""

    state: dict[str, Any]
    parts: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    path: Path = Path()
    lockstep: dict[str, np.ndarray] = field(default_factory=dict)


# -- list ----------------------------------------------------------------------------------------------------


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def candidates(run_dir: Path) -> list[Path]:
    """All checkpoints of a run, newest first, not verified."""
    folder = checkpoints_dir(run_dir)
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def last_saved(run_dir: Path, now: float) -> tuple[int, float] | None:
    """env_steps of the newest checkpoint, not verified, and its age in seconds at the time `now`; None without one."""
    for path in candidates(run_dir):
        with contextlib.suppress(OSError):  # it may be pruned at this moment
            return int(path.name), max(0.0, now - path.stat().st_mtime)
    return None


def settled_return(path: Path) -> float | None:
    """Training return when the checkpoint was saved; None if there were fewer than 100 episodes or it is unreadable."""
    try:
        state = json.loads((path / STATE).read_text())
        if not all(len(returns) == EPISODES_IN_MEAN for returns in state.get("episodes", {}).get("returns", ())):
            return None
        return float(state["training_return"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_state(path: Path) -> dict[str, Any]:
    """Counters and other numbers of a verified checkpoint."""
    try:
        return dict(json.loads((path / STATE).read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{STATE} unreadable ({error})") from error


def recorded_precision(path: Path) -> str:
    """Precision the checkpoint's run was trained in; empty if an older version wrote it. The checkpoint is verified."""
    return str(read_state(path).get("precision", ""))


def recorded_kernels(path: Path) -> str:
    """Kernels that computed the network of the checkpoint's run. The checkpoint is verified.

    Versions that do not record it had those of `run.kernels autograd`.
    """
    return str(read_state(path).get("kernels", "autograd"))


# -- verify --------------------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """Hash of a manifest without its own hash."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> dict[str, Any]:
    """Check every byte against the manifest and return the manifest. CheckpointError with the reason if it differs."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"manifest unreadable ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != manifest_sha256(manifest):
        raise CheckpointError("manifest damaged")
    files = manifest.get("files")
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in entries):
        raise CheckpointError("manifest lists no files")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"format {manifest.get('format')}, this version reads {FORMAT}")
    for name in (*(f"{part}.safetensors" for part in PARTS), STATE):
        if name not in manifest["files"]:
            raise CheckpointError(f"{name} is not in the manifest")
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{name} is missing")
        if file.stat().st_size != expected["size"]:
            raise CheckpointError(f"{name} has {file.stat().st_size} bytes, expected {expected['size']}")
        if file_sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{name} is damaged")
    check_counters(read_state(path))
    return manifest


def is_valid(path: Path) -> bool:
    """Whether `verify` passes and every file can be read."""
    try:
        verify(path)
    except (CheckpointError, OSError):
        return False
    return True


def best(run_dir: Path) -> Path | None:
    """The valid checkpoint with the highest training return, the newest of equals; None if no return is known."""
    scored = [(value, path) for path in candidates(run_dir) if (value := settled_return(path)) is not None]
    for _, path in sorted(scored, key=lambda pair: pair[0], reverse=True):
        if is_valid(path):
            return path
    return None


def newest(run_dir: Path, warnings: list[str] | None = None, move_damaged: bool = True) -> Path | None:
    """The newest valid checkpoint; None if the run has no checkpoint.

    Damaged ones are moved to `corrupt/` (`move_damaged=False`: stay, for a run of somebody else), each with a line in
    `warnings`. Raises CheckpointError if there are checkpoints and none is valid.
    """
    reasons = []
    for path in candidates(run_dir):
        try:
            verify(path)
            return path
        except (CheckpointError, OSError) as error:  # OSError: a failing sector, no permission to read
            reasons.append(f"checkpoint {path.name} skipped: {error}")
            if warnings is not None:
                warnings.append(reasons[-1])
            if not move_damaged:
                continue
            corrupt = run_dir / "corrupt"
            with contextlib.suppress(OSError):  # a read-only run can still be evaluated
                corrupt.mkdir(exist_ok=True)
                path.rename(corrupt / path.name)
    if reasons:
        raise CheckpointError("; ".join(reasons))
    return None


def resolve(path: Path) -> Path:
    """Verified checkpoint for the folder of a checkpoint or of a run (its newest). CheckpointError if there is none."""
    if (path / MANIFEST).is_file():
        verify(path)
        return path
    found = newest(path, move_damaged=False)
    if found is None:
        raise NoCheckpointError(f"{path} holds no checkpoint to begin with")
    return found


# -- load ----------------------------------------------------------------------------------------------------


def load(path: Path, parts: tuple[str, ...] = PARTS) -> Contents:
    """Load the named parts of a verified checkpoint, tensors on the CPU."""
    from safetensors.torch import load_file

    return Contents(
        state=json.loads((path / STATE).read_text()),
        parts={part: load_file(path / f"{part}.safetensors") for part in parts},
        path=path,
    )


def load_lockstep(path: Path) -> dict[str, np.ndarray]:
    """Load the additional state of a lockstep run; empty if the checkpoint has none."""
    if not (path / LOCKSTEP).exists():
        return {}
    with np.load(path / LOCKSTEP, allow_pickle=False) as arrays:
        return dict(arrays)


def restore_policy(path: Path, config: Config, spec: EnvSpec) -> tuple[ActorCritic, dict[str, Any]]:
    """Policy of one verified checkpoint in eval mode, and the checkpoint's state.

    CheckpointError if it read the observations in another way than this version.
    """
    from sfactory.learning.network import build_model

    contents = load(path, ("model",))
    check_reading(contents.state, spec, config)
    model = build_model(config, spec)
    model.load_state_dict(contents.parts["model"])
    return model.eval(), contents.state
