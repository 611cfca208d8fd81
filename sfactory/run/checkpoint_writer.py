"""Write checkpoints: `save` synchronously, `CheckpointWriter` in a thread. Format: `run.checkpoint`.

`save` refuses non-finite tensors, writes and fsyncs each file in a temporary folder, the manifest last, verifies the
files on disk, renames the folder, fsyncs its parent, then prunes. After a crash at any point the previous checkpoints
are unchanged, and a temporary folder that is left is never listed as a checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfactory._version import __version__
from sfactory.errors import CheckpointError
from sfactory.files import folder_entries, is_folder, require
from sfactory.run.checkpoint import best, candidates, checkpoints_dir, is_valid
from sfactory.run.checkpoint_files import (
    FORMAT,
    LOCKSTEP,
    MANIFEST,
    PARTS,
    STATE,
    Contents,
    manifest_sha256,
    verify,
)
from sfactory.run.presence import LockHolder

_TEMPORARY = re.compile(r"\.\d{12,18}\.(\d{1,10}|old)")
"""Names of the folders that are written here and renamed: `.000000001000.4711`, `.000000001000.old`."""


def save(run_dir: Path, contents: Contents, keep: int, milestones: int = 0) -> Path:
    """Write and verify one checkpoint, then `prune`. Raises OSError, CheckpointError or FileRefused."""
    final = write(checkpoints_dir(run_dir), contents)
    prune(run_dir, keep, milestones)
    return final


def write(folder: Path, contents: Contents) -> Path:
    """Write and verify one checkpoint in a folder, which is created. Raises OSError, CheckpointError or FileRefused."""
    for part, tensors in contents.parts.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise CheckpointError(f"{part} is not finite at {name}; the checkpoint was not written")
    require(folder, "a folder")
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{int(contents.state['env_steps']):012d}"
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write_files(temporary, contents)
        _write_manifest(temporary)
        fsync(temporary)
        verify(temporary)
        if final.exists():  # the same step saved again: at no time without a valid checkpoint
            exchange(temporary, final)
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.rename(final)
        fsync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def prune(run_dir: Path, keep: int, milestones: int = 0) -> None:
    """Delete old checkpoints, and temporary folders left by a crash. What another process reads stays for now.

    Kept: the newest `keep` valid ones, the best, the first after each multiple of `milestones` env_steps, and whatever
    has a name that is not given here.
    """
    found = candidates(run_dir)
    valid: list[Path] = []
    for path in found:  # newest first; verified, so that damaged ones do not replace the last valid ones
        if len(valid) < keep and is_valid(path):
            valid.append(path)
    firsts = {int(path.name) // milestones: path for path in found} if milestones else {}
    firsts.pop(0, None)  # before the first multiple
    kept = {*valid, *firsts.values(), best(run_dir)}
    oldest = min(int(path.name) for path in valid) if valid else 0
    for path in found:
        if path not in kept and int(path.name) < oldest:
            _put_aside(path)
    for path in folder_entries(checkpoints_dir(run_dir)):
        if _TEMPORARY.fullmatch(path.name) and is_folder(path):
            shutil.rmtree(path, ignore_errors=True)


def _put_aside(path: Path) -> None:
    """Rename a checkpoint, so that no reader finds a part of it; not if a reader holds it (`checkpoint.held`)."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not _is_held(folder):
                path.rename(path.with_name(f".{path.name}.old"))
        finally:
            os.close(folder)


def _is_held(folder: int) -> bool:
    """Whether a reader has locked this open folder; if not, it is locked here until it is closed."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        pass
    return False


def _write_files(folder: Path, contents: Contents) -> None:
    """Everything but the manifest."""
    from safetensors.torch import save as serialize

    for part in PARTS:
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in contents.parts.get(part, {}).items()}
        # Not save_file: on a full disk it raises no OSError.
        (folder / f"{part}.safetensors").write_bytes(serialize(tensors))
    if contents.lockstep:
        with (folder / LOCKSTEP).open("wb") as file:
            np.savez(file, **contents.lockstep)  # type: ignore[arg-type]  # arrays by name, no pickle
    (folder / STATE).write_text(json.dumps(contents.state, indent=1, sort_keys=True))


def _write_manifest(folder: Path) -> None:
    """The manifest of files that were written here."""
    import torch

    write_manifest(folder, sfactory=__version__, torch=torch.__version__)


def write_manifest(folder: Path, sfactory: str, torch: str) -> None:
    """Fsync every file, then write the manifest with their hashes. The versions are those that wrote the tensors."""
    files = {}
    for path in sorted(folder.iterdir()):
        fsync(path)
        with path.open("rb") as file:
            files[path.name] = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    manifest: dict[str, Any] = {"format": FORMAT, "sfactory": sfactory, "torch": torch, "files": files}
    manifest["sha256"] = manifest_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    fsync(folder / MANIFEST)


def fsync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exchange(new: Path, old: Path) -> None:
    """Swap two folders, atomically where the system supports it."""
    at_fdcwd, rename_exchange = -100, 2
    with contextlib.suppress(OSError, AttributeError):
        status = ctypes.CDLL(None).renameat2(at_fdcwd, os.fsencode(new), at_fdcwd, os.fsencode(old), rename_exchange)
        if status == 0:
            return
    moved = old.with_name(f".{old.name}.old")
    old.rename(moved)
    try:
        new.rename(old)
    except BaseException:
        moved.rename(old)
        raise
    moved.rename(new)


class SaveResult(NamedTuple):
    """Result of one save; error: None if it succeeded."""

    env_steps: int
    error: BaseException | None


class CheckpointWriter:
    """Writes checkpoints of one run in a thread, one at a time.

    `start` copies the tensors (milliseconds) between two updates; writing five files with an fsync each takes about a
    hundred milliseconds and happens in the thread.
    """

    def __init__(self, run_dir: Path, keep: int, milestones: int = 0, locked: Path | None = None) -> None:
        """locked: the folder that the run has locked; None for `run_dir` itself."""
        self.run_dir, self.keep, self.milestones = run_dir, keep, milestones
        self._lock_holder = LockHolder(locked or run_dir)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._env_steps = 0

    @property
    def busy(self) -> bool:
        """Whether a save was started and `poll` has not returned its result yet."""
        return self._thread is not None

    def start(self, contents: Contents) -> None:
        """Copy everything and start writing. Only when not busy."""
        assert not self.busy, "one save at a time"
        copies = {
            part: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for part, tensors in contents.parts.items()
        }
        copied = Contents(contents.state, copies, lockstep=contents.lockstep)
        self._env_steps, self._error = int(contents.state["env_steps"]), RuntimeError("the save ended without a result")
        thread = threading.Thread(target=self._write, args=(copied,), daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # no thread available: write here
            self._thread = threading.Thread()
            self._write(copied)

    def poll(self, wait: bool) -> SaveResult | None:
        """Result of the save that was started, once; None if there is none or it is still running (`wait=False`)."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        if self._thread.ident is not None:
            self._thread.join()
        self._thread = None
        return SaveResult(self._env_steps, self._error)

    def _write(self, contents: Contents) -> None:
        try:
            self._lock_holder.require()
            save(self.run_dir, contents, self.keep, self.milestones)
            self._error = None
        except BaseException as error:  # returned by `poll`
            self._error = error
