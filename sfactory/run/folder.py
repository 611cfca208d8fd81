"""Run folder: choose its name, find its config.toml, check that it has a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

from sfactory.errors import CommandError, Exit


def new_run_dir(target: str, seed: int) -> Path:
    """runs/<preset>_s<seed>_<date-time>, with a number appended for runs of the same second."""
    tasks = target.split(",")
    label = tasks[0] if len(tasks) == 1 else f"{tasks[0]}-and-{len(tasks) - 1}-more"
    name = f"{label.replace('/', '-')}_s{seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def require_config_file(run_dir: Path) -> Path:
    """config.toml of a run. CommandError (exit 2) if `run_dir` is not a run folder."""
    file = run_dir / "config.toml"
    if not file.is_file():
        above = run_dir.resolve().parent.parent
        if (run_dir / "manifest.json").is_file() and (above / "config.toml").is_file():
            raise CommandError(Exit.USAGE, f"{run_dir} is a checkpoint; its run is {run_dir.parent.parent}")
        problem = "holds no run (no config.toml)" if run_dir.is_dir() else "does not exist"
        others = sorted(p.parent for p in Path("runs").glob("*/config.toml"))
        hint = f"; the newest run here is {max(others, key=lambda p: p.stat().st_mtime)}" if others else ""
        raise CommandError(Exit.USAGE, f"{run_dir} {problem}{hint}")
    return file


def supervisor_is_running(pid: object, written_at: float) -> bool:
    """Whether the supervisor that wrote `pid` into status.json at `written_at` still runs.

    A process that started later has been given the same id by the system.
    """
    import psutil

    if not isinstance(pid, int):
        return False
    try:
        return bool(psutil.Process(pid).create_time() <= written_at + 1.0)
    except (psutil.Error, OSError, ValueError):
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


def require_run_or_checkpoint(path: Path) -> None:
    """CommandError (exit 2 or 5) unless `path` is a run with a checkpoint, or the folder of a checkpoint."""
    if not (path / "manifest.json").is_file():
        require_config_file(path)
        require_checkpoint(path)
