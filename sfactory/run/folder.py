"""Run folder: choose its name, find its config.toml, check that it has a checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from sfactory.errors import CommandError, Exit, resume_command
from sfactory.files import MiB, folder_entries, is_file, is_folder, read_text, require
from sfactory.run.lock import LOCK

LONGEST_NAME = 255
"""Bytes of the name of a file or folder, in almost every file system."""
LONGEST_LABEL = 60
"""Characters of a target in the name of a run's folder."""


def path_component(text: str) -> str:
    """Replace characters that do not belong in the name of a file or folder."""
    return re.sub(r"[^\w.=,+-]+", "-", text).lstrip(".-") or "run"


def new_run_dir(target: str, seed: int) -> Path:
    """runs/<preset>_s<seed>_<date-time>, with a number appended for runs of the same second.

    target: preset, FAMILY/ID, or code such as sub/my_file.py:MyEnv, whose folder is left out of the name.
    """
    first, *others = target.split(",")
    module, colon, name = first.rpartition(":")
    if module.endswith(".py"):
        first = f"{Path(module).stem}{colon}{name}"
    label = f"{first}-and-{len(others)}-more" if others else first
    name = f"{path_component(label)[:LONGEST_LABEL].rstrip('-')}_s{seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def make_folder(path: Path) -> list[Path]:
    """Create a folder and its parents; return what was created, the innermost first. Empty if it exists already."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        if path.is_dir():
            return []
        raise
    return [path, *missing]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def clear_folder(folder: Path) -> None:
    """Remove what is in a folder."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path, ignore_errors=True)


FILES = (".lock", "config.toml", "status.json", "metrics.jsonl", "episodes.csv", "log.txt", "report.html",
         "provenance.json", "run_id")  # fmt: skip
FOLDERS = ("checkpoints", "code", "corrupt", "debug", "tb", "wandb")
"""What a command writes in a run folder."""


def refuse_links(run_dir: Path) -> None:
    """FileRefused (exit 2) if something that training writes into is a link, a pipe, or else not what it should be.

    A downloaded folder could make a command write to the user's own files.
    """
    for name in FILES:
        require(run_dir / name, "a file")
    for name in FOLDERS:
        for path in folder_entries(run_dir / name):
            if name == "wandb" and _leads_inside(path):
                continue  # wandb's own, as latest-run; it makes them again
            if name in ("code", "debug", "tb", "wandb") and not is_folder(path):
                require(path, "a file")


def _leads_inside(link: Path) -> bool:
    """Whether a path is a link to something beside it or below that."""
    with contextlib.suppress(OSError, RuntimeError):  # a loop of links
        return link.is_symlink() and link.name != "id" and link.resolve().is_relative_to(link.parent.resolve())
    return False


def is_run(path: Path) -> bool:
    """Whether a path is the folder of a run. False for what cannot be the name of a folder."""
    try:
        return (path / "config.toml").is_file()
    except OSError:  # the name is too long
        return False


def _never_trained(run_dir: Path) -> bool:
    """Whether the start of a run failed, so that there is nothing to resume."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        failed = bool(json.loads(read_text(run_dir / "status.json", MiB)).get("state") == "failed")
        return failed and not any(run_dir.glob("checkpoints/[0-9]*"))
    return False


class FolderTaken(CommandError):
    """A new run cannot have a folder, because a run is in it already."""


def refuse_run(run_dir: Path, locked: bool = False) -> None:
    """FolderTaken (exit 2) if a folder holds a run. locked: this process has locked it, to look."""
    if not is_run(run_dir):
        return
    if _never_trained(run_dir):
        problem = f"{run_dir} holds a run whose start failed"
        raise FolderTaken(Exit.USAGE, f"{problem}; remove it, or choose another run.dir")
    pid = locking_process(run_dir)
    if not locked and supervisor_is_running(run_dir, pid):
        who = "this process" if pid == os.getpid() else f"process {pid}"
        raise FolderTaken(Exit.USAGE, f"{run_dir} holds a run that {who} trains now; choose another run.dir")
    how = f"{resume_command(run_dir)}, in Python sfactory.resume({str(run_dir)!r})"
    raise FolderTaken(Exit.USAGE, f"{run_dir} holds a run already; resume it: {how}; or choose another run.dir")


def refuse_existing(run_dir: Path) -> None:
    """CommandError (exit 2) if a new run cannot have this folder."""
    refuse_run(run_dir)
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in run_dir.parts):
        raise CommandError(Exit.USAGE, f"run.dir {str(run_dir)[:60]}...: a name of more than {LONGEST_NAME} bytes")
    if any("\ud800" <= c <= "\udfff" for c in str(run_dir)):
        name = str(run_dir).encode(errors="backslashreplace").decode()
        raise CommandError(Exit.USAGE, f"run.dir {name}: a name that is not UTF-8; choose another one")
    try:
        exists = run_dir.exists()
    except OSError as error:
        raise CommandError(Exit.USAGE, f"run.dir {str(run_dir)[:60]}: {error.strerror}") from None
    if exists:
        raise CommandError(Exit.USAGE, f"{run_dir} exists already; choose another run.dir")


def require_config_file(run_dir: Path) -> Path:
    """config.toml of a run. CommandError (exit 2) if `run_dir` is not a run folder."""
    file = run_dir / "config.toml"
    if not file.is_file():
        above = run_dir.resolve().parent.parent
        if (run_dir / "manifest.json").is_file() and (above / "config.toml").is_file():
            raise CommandError(Exit.USAGE, f"{run_dir} is a checkpoint; its run is {run_dir.parent.parent}")
        problem = "is a file, not the folder of a run" if run_dir.exists() else "does not exist"
        if run_dir.is_dir():
            problem = "holds no run (no config.toml)"
        inside, here = (sorted(p.parent for p in place.glob("*/config.toml")) for place in (run_dir, Path("runs")))
        newest = max(inside or here, key=lambda p: p.stat().st_mtime, default=None)
        hint = f"; the newest run {'in it' if inside else 'here'} is {newest}" if newest is not None else ""
        raise CommandError(Exit.USAGE, f"{run_dir} {problem}{hint}")
    return file


def supervisor_is_running(run_dir: Path, pid: object) -> bool:
    """Whether the process `pid`, as status.json names it, trains in this folder.

    The folder may have come from another machine, and the id may be another process's since: the process must belong
    to the owner of the lock file, be older than it, and have it open, where that can be seen.
    """
    import psutil

    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        lock, process = (run_dir / LOCK).lstat(), psutil.Process(pid)
        if process.uids().real != lock.st_uid or process.create_time() > lock.st_mtime + 1.0:
            return False
    except (psutil.Error, OSError, ValueError, OverflowError):
        return False
    return _has_open(pid, run_dir / LOCK)


def locking_process(run_dir: Path) -> int:
    """The process that had the lock of a folder last, as its lock file says; 0 if that cannot be read."""
    try:
        return int(read_text(run_dir / LOCK, MiB))
    except (OSError, ValueError):
        return 0


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open; True where its open files cannot be seen."""
    folder = f"/proc/{pid}/fd"
    try:
        expected, numbers = path.lstat(), os.listdir(folder)
    except FileNotFoundError:
        return not os.path.isdir("/proc/self/fd")
    except OSError:  # a process of another user
        return True
    for number in numbers:
        with contextlib.suppress(OSError):  # closed meanwhile
            found = os.stat(f"{folder}/{number}")
            if (found.st_dev, found.st_ino) == (expected.st_dev, expected.st_ino):
                return True
    return False


def has_checkpoint(run_dir: Path) -> bool:
    """Whether the run can be resumed. CommandError (exit 5) if all its checkpoints are damaged."""
    from sfactory.run.checkpoint import candidates

    if not candidates(run_dir) and any((run_dir / "corrupt").glob("*")):
        damaged = f"every checkpoint of {run_dir} is damaged; they were moved to {run_dir / 'corrupt'}"
        raise CommandError(Exit.NO_USABLE_CHECKPOINT, damaged)
    return bool(candidates(run_dir))


def require_checkpoint(run_dir: Path) -> None:
    """CommandError (exit 2 or 5) if the run has no checkpoint."""
    if not has_checkpoint(run_dir):
        raise CommandError(Exit.USAGE, f"{run_dir} holds no checkpoint yet; start a new run with `sfactory train`")


def run_of(path: Path) -> Path:
    """The run of a checkpoint's folder; a run itself is returned as it is."""
    return path.resolve().parent.parent if is_file(path / "manifest.json") else path


def require_run_or_checkpoint(path: Path) -> None:
    """CommandError (exit 2 or 5) unless `path` is a run with a checkpoint, or the folder of a checkpoint."""
    if not (path / "manifest.json").is_file():
        require_config_file(path)
        require_checkpoint(path)
