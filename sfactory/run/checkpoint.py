"""What a run is on disk: safetensors and JSON, no code on the load path.

    checkpoints/000001048576/           named by trained env_steps
        model.safetensors               weights and the normaliser that belongs to them, as inference uses them
        proximal.safetensors            state of the proximal policy
        optimizer.safetensors           Adam's moments
        normalizers.safetensors         float64 statistics
        state.json                      counters, seeds, what else is a number
        lockstep.npz                    lockstep only: memory, environments, half-filled windows, for an exact resume
        manifest.json                   written last: format, versions, size and SHA-256 of every file, its own hash

Writing: refuse what is not finite, write and fsync each file in a temporary directory, manifest last, rename, fsync the
parent, read it back, prune. Loading: newest to oldest, the first good one wins, and every bad one is named and moved to
`corrupt/`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfactory._version import __version__
from sfactory.errors import CheckpointError, NoCheckpointError

if TYPE_CHECKING:  # the supervisor looks for checkpoints and must not import torch
    import torch

    from sfactory.config import Config
    from sfactory.envs import EnvSpec
    from sfactory.model.actor_critic import ActorCritic

FORMAT = 1
PARTS = ("model", "proximal", "optimizer", "normalizers")
MANIFEST = "manifest.json"
LOCKSTEP = "lockstep.npz"


@dataclass
class Contents:
    """Everything a checkpoint holds: tensors by part and name, and a JSON-able state."""

    state: dict[str, Any]
    parts: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    path: Path = Path()
    lockstep: dict[str, np.ndarray] = field(default_factory=dict)


def _folder(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _manifest_hash(manifest: dict[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def save(run_dir: Path, contents: Contents, keep: int, milestones: int = 0) -> Path:
    """Write one checkpoint, verify it, then drop those that need not be kept (`prune`). OSError or CheckpointError."""
    import torch
    from safetensors.torch import save as serialize

    for part, tensors in contents.parts.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{part} is not finite at {name}; the checkpoint was not written")
    folder = _folder(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{int(contents.state['env_steps']):012d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        for part in PARTS:
            tensors = {name: t.detach().cpu().contiguous().clone() for name, t in contents.parts.get(part, {}).items()}
            # Not save_file: what it raises on a full disk is no OSError.
            (temporary / f"{part}.safetensors").write_bytes(serialize(tensors))
        if contents.lockstep:
            with (temporary / LOCKSTEP).open("wb") as file:
                np.savez(file, **contents.lockstep)  # type: ignore[arg-type]  # arrays by name, no pickle
        (temporary / "state.json").write_text(json.dumps(contents.state, indent=1, sort_keys=True))
        files = {}
        for path in sorted(temporary.iterdir()):
            _fsync(path)
            files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "sfactory": __version__,
            "torch": torch.__version__,
            "files": files,
        }
        manifest["sha256"] = _manifest_hash(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _fsync(temporary / MANIFEST)
        _fsync(temporary)
        if final.exists():  # the same step saved again: at no moment is there none
            _exchange(temporary, final)
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.rename(final)
        _fsync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    verify(final)
    prune(run_dir, keep, milestones)
    return final


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders, in one step where the system can."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL(None).renameat2(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0:
            return
    aside = old.with_name(f".{old.name}.old")
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    aside.rename(new)


def prune(run_dir: Path, keep: int, milestones: int = 0) -> None:
    """Keep the newest `keep` good checkpoints, the best, and the first after each multiple of `milestones` env_steps.
    Drop the others, and what half-written ones a crash left."""
    found = candidates(run_dir)
    good: list[Path] = []
    for path in found:  # newest first; verified, so that three damaged ones never push out the last good one
        if len(good) < keep and _reason(path) is None:
            good.append(path)
    firsts = {int(path.name) // milestones: path for path in found} if milestones else {}
    firsts.pop(0, None)  # before the first multiple
    kept = {*good, *firsts.values(), best(run_dir)}
    oldest = min(int(path.name) for path in good) if good else 0
    for path in found:
        if path not in kept and int(path.name) < oldest:
            shutil.rmtree(path, ignore_errors=True)
    for left in _folder(run_dir).glob(".*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


def candidates(run_dir: Path) -> list[Path]:
    """Checkpoints, newest first, good or not."""
    folder = _folder(run_dir)
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def last(run_dir: Path, now: float) -> tuple[int, float] | None:
    """Steps of the newest checkpoint, good or not, and its age in seconds at the time `now`; None without one."""
    for path in candidates(run_dir):
        with contextlib.suppress(OSError):  # it may be pruned at this moment
            return int(path.name), max(0.0, now - path.stat().st_mtime)
    return None


def verify(path: Path) -> dict[str, Any]:
    """Check every byte against the manifest; returns the manifest. Raises CheckpointError with the reason."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"manifest unreadable ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("sha256") != _manifest_hash(manifest):
        raise CheckpointError("manifest damaged")
    files = manifest.get("files")
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in entries):
        raise CheckpointError("manifest lists no files")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"format {manifest.get('format')}, this version reads {FORMAT}")
    for name in (*(f"{part}.safetensors" for part in PARTS), "state.json"):
        if name not in manifest["files"]:
            raise CheckpointError(f"{name} is not in the manifest")
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{name} is missing")
        if file.stat().st_size != expected["size"]:
            raise CheckpointError(f"{name} has {file.stat().st_size} bytes, expected {expected['size']}")
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{name} is damaged")
    return manifest


def _reason(path: Path) -> str | None:
    """What is wrong with a checkpoint; None: nothing."""
    try:
        verify(path)
    except (CheckpointError, OSError) as error:
        return str(error)
    return None


def score(path: Path) -> float | None:
    """Training return (mean of the last 100 games) when it was saved; None if it was not known, or is not readable."""
    try:
        return float(json.loads((path / "state.json").read_text())["training_return"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def best(run_dir: Path) -> Path | None:
    """The good checkpoint with the highest training return, the newest of equals; None if no return was known."""
    scored = [(value, path) for path in candidates(run_dir) if (value := score(path)) is not None]
    for _, path in sorted(scored, key=lambda one: one[0], reverse=True):
        if _reason(path) is None:
            return path
    return None


def newest(run_dir: Path, warn: list[str] | None = None, ours: bool = True) -> Path | None:
    """The newest good checkpoint, or None if there was never one. Bad ones move to `corrupt/` (not in a run that is not
    ours), their reasons to `warn`.

    Raises CheckpointError if there are checkpoints and none is usable.
    """
    found = candidates(run_dir)
    reasons = []
    for path in found:
        try:
            verify(path)
            return path
        except (CheckpointError, OSError) as error:  # a sector that cannot be read, a file of somebody else's
            reasons.append(f"checkpoint {path.name} skipped: {error}")
            if warn is not None:
                warn.append(reasons[-1])
            if not ours:
                continue
            corrupt = run_dir / "corrupt"
            with contextlib.suppress(OSError):  # a read-only run can still be evaluated
                corrupt.mkdir(exist_ok=True)
                path.rename(corrupt / path.name)
    if reasons:
        raise CheckpointError("; ".join(reasons))
    return None


def source(path: Path) -> Path:
    """The checkpoint meant by the folder of a run (its newest) or of a checkpoint. CheckpointError if there is none."""
    if (path / MANIFEST).is_file():
        verify(path)
        return path
    found = newest(path, ours=False)
    if found is None:
        raise NoCheckpointError(f"{path} holds no checkpoint to begin with")
    return found


def load(path: Path, parts: tuple[str, ...] = PARTS) -> Contents:
    """Read the named parts of a verified checkpoint; tensors on the CPU."""
    from safetensors.torch import load_file

    return Contents(
        state=json.loads((path / "state.json").read_text()),
        parts={part: load_file(path / f"{part}.safetensors") for part in parts},
        path=path,
    )


def load_lockstep(path: Path) -> dict[str, np.ndarray]:
    """What lockstep saved beside the learner; empty if the checkpoint is not one of lockstep's."""
    if not (path / LOCKSTEP).exists():
        return {}
    with np.load(path / LOCKSTEP, allow_pickle=False) as arrays:
        return dict(arrays)


def load_policy(run_dir: Path) -> tuple[ActorCritic, dict[str, Any]]:
    """The newest policy of a run in eval mode, normaliser set, and the checkpoint's state. Opens nothing else."""
    from sfactory.config.toml_file import from_toml
    from sfactory.envs import make_spec

    path = newest(run_dir)
    if path is None:
        raise NoCheckpointError(f"{run_dir} holds no checkpoint yet")
    config = from_toml(run_dir / "config.toml")
    return restore_policy(path, config, make_spec(config.env.tasks[0], config.env.arguments))


def restore_policy(path: Path, config: Config, spec: EnvSpec) -> tuple[ActorCritic, dict[str, Any]]:
    """The policy of one verified checkpoint in eval mode, and the checkpoint's state."""
    from sfactory.learning.network import build_model

    model = build_model(config, spec)
    contents = load(path, ("model",))
    model.load_state_dict(contents.parts["model"])
    return model.eval(), contents.state
