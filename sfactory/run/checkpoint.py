"""Checkpoint format; list the checkpoints of a run and choose one. Only safetensors and JSON: no code is loaded.

    checkpoints/000001048576/           name: trained env_steps
        model.safetensors               weights and the observation normalizer, as inference uses them
        proximal.safetensors            state of the proximal policy
        optimizer.safetensors           Adam's moments
        normalizers.safetensors         float64 statistics
        state.json                      counters, seeds and other numbers
        lockstep.npz                    lockstep only, for an exact resume: memory, environments, slots held for replay,
                                        unfinished windows
        manifest.json                   written last: format, versions, size and SHA-256 of every file, its own hash

Every function that returns a checkpoint to load (`read_newest`, `newest`, `best`, `resolve`) verifies it first.
`candidates` lists without verifying. Reading one: `run.checkpoint_files`. Writing: `run.checkpoint_writer`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sfactory.config import Config
from sfactory.device.ranks import ALONE, Ranks
from sfactory.errors import CheckpointError, FileRefused, NoCheckpointError
from sfactory.files import folder_entries, is_file, is_folder, kind, open_to_read, require
from sfactory.monitor.table import EPISODES_IN_MEAN
from sfactory.run.checkpoint_files import (
    FORMAT,
    LOCKSTEP,
    MANIFEST,
    PARTS,
    STATE,
    Contents,
    DamagedCheckpoint,
    VanishedCheckpoint,
    read,
    read_state,
    verify,
)
from sfactory.run.network_size import check_network_size
from sfactory.run.obs_reading import check_reading

if TYPE_CHECKING:  # the supervisor lists checkpoints and must not import torch
    import torch

    from sfactory.envs import EnvSpec
    from sfactory.model.actor_critic import ActorCritic

__all__ = ["FORMAT", "LOCKSTEP", "MANIFEST", "PARTS", "STATE", "CheckpointError", "Contents", "read", "verify"]

DIGITS = range(12, 19)
"""Numbers of digits that the name of a checkpoint may have; env_steps have 64 bits."""
LOCKSTEP_ARRAYS = ("arena", "state", "held")
"""Arrays of a lockstep checkpoint; `held` only if slots are held for replay."""
ATTEMPTS = 1000
"""Checkpoints that may be pruned one after the other while they are listed, or while the newest is opened."""
T = TypeVar("T")


# -- list ----------------------------------------------------------------------------------------------------


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def is_checkpoint_name(name: str) -> bool:
    """Whether `run.checkpoint_writer` gives a checkpoint this name."""
    return name.isascii() and name.isdigit() and len(name) in DIGITS


def candidates(run_dir: Path) -> list[Path]:
    """All checkpoints of a run, newest first, not verified. FileRefused if `checkpoints` is a link or no folder."""
    for _ in range(ATTEMPTS):
        entries = folder_entries(checkpoints_dir(run_dir))
        found = {path: kind(path) for path in entries if is_checkpoint_name(path.name)}
        if all(found.values()):
            break  # else one was pruned after the folder was listed, and the newer one may not be in the list
    folders = [path for path, what in found.items() if what == "a folder"]
    return sorted(folders, key=lambda path: (int(path.name), path.name), reverse=True)


def from_candidates(run_dir: Path, look: Callable[[list[Path]], T]) -> T:
    """What `look` finds in the list of `candidates`; it looks again if one of them is pruned meanwhile.

    A run prunes a checkpoint after it has saved a newer one, which may not be in the list.
    """
    for _ in range(ATTEMPTS):
        listed = candidates(run_dir)
        found = look(listed)
        if all(is_folder(path) for path in listed):
            break
    return found


def last_saved(run_dir: Path, now: float) -> tuple[int, float] | None:
    """env_steps of the newest checkpoint, not verified, and its age in seconds at the time `now`; None without one."""
    with contextlib.suppress(FileRefused, OSError):  # the folder may have been replaced while the run trains
        for path in candidates(run_dir):
            with contextlib.suppress(OSError):  # it may be pruned at this moment
                return int(path.name), max(0.0, now - path.stat().st_mtime)
    return None


def size_of_newest(run_dir: Path) -> int:
    """Bytes of the newest checkpoint that can be looked at, not verified; 0 without one."""
    with contextlib.suppress(FileRefused, OSError):  # as in `last_saved`
        for path in candidates(run_dir):
            with contextlib.suppress(OSError):
                return sum(file.lstat().st_size for file in path.iterdir())
    return 0


def settled_return(path: Path) -> float | None:
    """Training return when the checkpoint was saved; None if there were fewer than 100 episodes or it is unreadable."""
    try:
        state = read_state(path)
        if not all(len(returns) == EPISODES_IN_MEAN for returns in state.get("episodes", {}).get("returns", ())):
            return None
        return float(state["training_return"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def recorded_precision(path: Path) -> str:
    """Precision the checkpoint's run was trained in; empty if an older version wrote it. The checkpoint is verified."""
    return str(read_state(path).get("precision", ""))


def recorded_kernels(path: Path) -> str:
    """Kernels that computed the network of the checkpoint's run. The checkpoint is verified.

    Versions that do not record it had those of `run.kernels autograd`.
    """
    return str(read_state(path).get("kernels", "autograd"))


def index_beside(path: Path, config: Config) -> int:
    """First number (`env_index`) of environments beside the run of a checkpoint. The checkpoint is verified."""
    return config.index_beside(int(read_state(path).get("world_size", 1)))


# -- choose --------------------------------------------------------------------------------------------------


def is_valid(path: Path) -> bool:
    """Whether `verify` passes and every file can be read."""
    try:
        verify(path)
    except (CheckpointError, FileRefused, OSError):
        return False
    return True


def best(run_dir: Path) -> Path | None:
    """The valid checkpoint with the highest training return, the newest of equals; None if no return is known."""
    return from_candidates(run_dir, _best_of)


def _best_of(listed: list[Path]) -> Path | None:
    """As `best`, of these checkpoints, newest first."""
    scored = [(value, path) for path in listed if (value := settled_return(path)) is not None]
    ranked = (path for _, path in sorted(scored, key=lambda pair: pair[0], reverse=True))
    return next(filter(is_valid, ranked), None)


def read_newest(
    run_dir: Path,
    parts: Sequence[str] = (),
    warnings: list[str] | None = None,
    move_damaged: bool = False,
    check: Callable[[Contents], None] = lambda contents: None,
) -> Contents | None:
    """Read the newest valid checkpoint of a run; None if the run has no checkpoint.

    check: raises CheckpointError for contents that the caller cannot use. Those that cannot be used are skipped, each
    with a line in `warnings`. move_damaged: move those whose bytes differ from what was written to `corrupt/`; only a
    command that trains in the folder does so. Raises CheckpointError if there are checkpoints and none can be used.
    """
    reasons: dict[Path, str] = {}
    for _ in range(ATTEMPTS):
        path = next((one for one in candidates(run_dir) if one not in reasons), None)
        if path is None:
            break
        try:
            contents = read(path, parts)
            check(contents)
            return contents
        except VanishedCheckpoint:  # pruned by the run, which has a newer one
            continue
        except (CheckpointError, FileRefused, OSError) as error:  # OSError: a failing sector, no permission to read
            reasons[path] = f"checkpoint {path.name} skipped: {error}"
            if warnings is not None:
                warnings.append(reasons[path])
            if move_damaged and isinstance(error, DamagedCheckpoint):
                _move_to_corrupt(path)
    if reasons:
        raise CheckpointError("; ".join(reasons.values()))
    return None


def _move_to_corrupt(path: Path) -> None:
    corrupt = path.parent.parent / "corrupt"
    require(corrupt, "a folder")
    with contextlib.suppress(OSError):  # it is skipped where it is
        corrupt.mkdir(exist_ok=True)
        path.rename(corrupt / path.name)


def newest(run_dir: Path, warnings: list[str] | None = None, move_damaged: bool = False) -> Path | None:
    """The newest valid checkpoint; see `read_newest`."""
    found = read_newest(run_dir, (), warnings, move_damaged)
    return None if found is None else found.path


def read_from(path: Path, parts: Sequence[str] = PARTS) -> Contents:
    """Read the checkpoint in a folder, or the newest one of a run. CheckpointError if there is none."""
    if is_file(path / MANIFEST):
        try:
            return read(path, parts)
        except CheckpointError as error:
            raise type(error)(f"{path}: {error}") from error
    found = read_newest(path, parts)
    if found is None:
        raise NoCheckpointError(f"{path} holds no checkpoint to begin with")
    return found


@contextlib.contextmanager
def held(choose: Callable[[], Path]) -> Iterator[Path]:
    """The checkpoint that `choose` returns; a run that saves meanwhile does not prune it within this context.

    choose: called again if its checkpoint was pruned before it was held. Where the file system has no locks, or the
    checkpoint is not readable for this user, nothing is held.
    """
    with contextlib.ExitStack() as stack:
        for _ in range(ATTEMPTS):
            path = choose()
            if _hold(path, stack):
                break
        yield path


def _hold(path: Path, stack: contextlib.ExitStack) -> bool:
    """Lock the folder of a checkpoint until the stack is closed; False if it is gone."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(folder), os.stat(path))
    except (BlockingIOError, FileNotFoundError):  # it is being pruned, or was
        return False
    except OSError:
        return True


def resolve(path: Path) -> Path:
    """Verified checkpoint for the folder of a checkpoint or of a run (its newest). CheckpointError if there is none."""
    return read_from(path, ()).path


# -- load ----------------------------------------------------------------------------------------------------


def load_lockstep(path: Path, ranks: Ranks = ALONE) -> dict[str, np.ndarray]:
    """Load the additional state of one rank of a lockstep run; empty if the checkpoint has none.

    It has none for a job of another size: its ranks cannot go on as if there had been no interruption.
    """
    if read_state(path).get("world_size", 1) != ranks.world_size:
        return {}
    suffix = "" if ranks.is_leader else f".{ranks.rank}"
    try:
        file = open_to_read(path / LOCKSTEP)
    except FileNotFoundError:
        return {}
    with file:
        try:
            with zipfile.ZipFile(file) as packed:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in packed.infolist()):
                    raise CheckpointError(f"{LOCKSTEP} is compressed, which this program never writes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name + suffix] for name in LOCKSTEP_ARRAYS if name + suffix in arrays}
        except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise CheckpointError(f"{LOCKSTEP} cannot be read ({error})") from error


def restore_policy(path: Path, config: Config, spec: EnvSpec) -> tuple[ActorCritic, dict[str, Any]]:
    """Policy of one checkpoint in eval mode, and the checkpoint's state; errors as in `policy_of`."""
    contents = read(path, ("model",))
    return policy_of(contents, config, spec), contents.state


def policy_of(contents: Contents, config: Config, spec: EnvSpec) -> ActorCritic:
    """Policy of a checkpoint that was read with its model, in eval mode.

    CheckpointError if its network is not that of the configuration, or if it read the observations in another way.
    """
    from sfactory.learning.network import build_model

    check_reading(contents.state, spec, config)
    check_network_size(config, contents.headers["model"])
    model = build_model(config, spec)
    require_same_network(contents.parts["model"], model.state_dict(), str(contents.path))
    model.load_state_dict(contents.parts["model"])
    return model.eval()


def require_same_network(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str, whole: str = "network"
) -> None:
    """CheckpointError if names, shapes or dtypes of tensors differ. source: where they come from; whole: what it is."""
    differences = []
    for name in sorted({*found, *expected}):
        if name not in expected:
            differences.append(f"{name!r} is not in this {whole}")
        elif name not in found:
            differences.append(f"{name} missing, expected {list(expected[name].shape)}")
        elif found[name].shape != expected[name].shape:
            differences.append(f"{name} {list(found[name].shape)}, expected {list(expected[name].shape)}")
        elif found[name].dtype != expected[name].dtype:
            differences.append(f"{name} {found[name].dtype}, expected {expected[name].dtype}")
    if differences:
        raise CheckpointError(f"{source}: another {whole}: {', '.join(differences[:4])}")
