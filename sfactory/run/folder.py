"""The folder of a run: its name, its settings file, and what is said where one is missing."""

from __future__ import annotations

import time
from pathlib import Path

from sfactory.errors import CommandError, Exit


def new_folder(target: str, seed: int) -> Path:
    """runs/<preset>_s<seed>_<date-time>, with a number behind it for runs of the same second."""
    tasks = target.split(",")
    label = tasks[0] if len(tasks) == 1 else f"{tasks[0]}-and-{len(tasks) - 1}-more"
    name = f"{label.replace('/', '-')}_s{seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def settings_of(run_dir: Path) -> Path:
    """Its config.toml; CommandError (exit 2) where there is no run."""
    file = run_dir / "config.toml"
    if not file.is_file():
        above = run_dir.resolve().parent.parent
        if (run_dir / "manifest.json").is_file() and (above / "config.toml").is_file():
            raise CommandError(Exit.USAGE, f"{run_dir} is a checkpoint; its run is {run_dir.parent.parent}")
        what = "holds no run (no config.toml)" if run_dir.is_dir() else "does not exist"
        others = sorted(p.parent for p in Path("runs").glob("*/config.toml"))
        hint = f"; the newest run here is {max(others, key=lambda p: p.stat().st_mtime)}" if others else ""
        raise CommandError(Exit.USAGE, f"{run_dir} {what}{hint}")
    return file


def supervised(pid: object, told_at: float) -> bool:
    """Whether the process that said at the time `told_at` that it trains still runs, and nobody younger with its id."""
    import psutil

    if not isinstance(pid, int):
        return False
    try:
        return bool(psutil.Process(pid).create_time() <= told_at + 1.0)
    except (psutil.Error, OSError, ValueError):
        return False


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is something to go on from. CommandError (exit 5) if all there was is damaged."""
    from sfactory.run.checkpoint import candidates

    if not candidates(run_dir) and any((run_dir / "corrupt").glob("*")):
        damaged = f"every checkpoint of {run_dir} is damaged; they lie in {run_dir / 'corrupt'}"
        raise CommandError(Exit.NO_USABLE_CHECKPOINT, damaged)
    return bool(candidates(run_dir))


def need_checkpoint(run_dir: Path) -> None:
    """CommandError (exit 2 or 5) where there is nothing to go on from."""
    if not has_checkpoint(run_dir):
        raise CommandError(Exit.USAGE, f"{run_dir} holds no checkpoint yet; start anew with `sfactory train`")


def need_run(path: Path) -> None:
    """CommandError (exit 2 or 5) unless `path` is a run that has a checkpoint, or a checkpoint."""
    if not (path / "manifest.json").is_file():
        settings_of(path)
        need_checkpoint(path)
