"""The run folder of a job with several ranks: rank 0 has the folder of the run, the others have folders in it."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

from sfactory.algo.surrogates.options import ONE_LEARNER
from sfactory.config import Config, Eval, with_settings
from sfactory.device.ranks import Ranks
from sfactory.errors import CommandError, Exit
from sfactory.run.folder import is_run
from sfactory.run.lock import LOCK

LEADER_S = 300.0
"""For rank 0 to open the folder of a new run."""
LOOK_S = 0.05


def check_job(config: Config, ranks: Ranks) -> None:
    """CommandError (exit 2) for settings that a job with several ranks cannot have."""
    if ranks.alone:
        return
    if not config.run.dir:
        raise CommandError(Exit.USAGE, f"{ranks.world_size} ranks need run.dir: all of them train in the same folder")
    if config.sampling.auto:
        raise CommandError(
            Exit.USAGE, "sampling.auto measures one rank; find the numbers with it first, then give them"
        )
    if config.selfplay.share:
        raise CommandError(Exit.USAGE, "selfplay.share needs a single rank: the pool of opponents has one learner")
    for setting in ("objective", "mask"):
        name = getattr(config.surrogate, setting)
        if name in ONE_LEARNER:
            raise CommandError(Exit.USAGE, f"surrogate.{setting} {name} needs a single rank: it {ONE_LEARNER[name]}")


def settings_of_follower() -> dict[str, Any]:
    """Settings that only rank 0 has: it alone evaluates and reports."""
    evaluation = {f"eval.{name}": getattr(Eval(), name) for name in ("every", "episodes", "greedy", "video")}
    return {**evaluation, "log.wandb": False, "log.quiet": True}


def settings_of_rank(config: Config, ranks: Ranks) -> Config:
    """The settings of one rank of the job."""
    return config if ranks.is_leader else with_settings(config, settings_of_follower())


def wait_for_leader(run_dir: Path, ranks: Ranks) -> None:
    """Wait until rank 0 has opened the folder of a new run. CommandError (exit 7) if it does not.

    Rank 0 itself does not wait.
    """
    deadline = time.monotonic() + LEADER_S
    while not ranks.is_leader and not (is_run(run_dir) and _is_locked(run_dir)):
        if time.monotonic() > deadline:
            raise CommandError(
                Exit.WORKER_LOST,
                f"{ranks.name}: rank 0 has not opened {run_dir} within {LEADER_S:g} s; do all ranks see this folder?",
            )
        time.sleep(LOOK_S)


def _is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of a folder; also where the file system has no locks."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
