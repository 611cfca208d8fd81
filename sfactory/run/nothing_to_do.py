"""Find out whether a resume has anything to train, before anything is started or written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from sfactory.config import Config
from sfactory.device.ranks import ALONE, Ranks
from sfactory.errors import CheckpointError, Exit
from sfactory.monitor.episodes import stored_episodes
from sfactory.monitor.table import EPISODES_IN_MEAN
from sfactory.run import checkpoint
from sfactory.run.lock import lock_folder
from sfactory.run.outcome import Outcome
from sfactory.run.reader import read_status
from sfactory.run.stop_rules import Progress, raised_settings, reached_rules, sentence_of


def nothing_to_do(before: Config, config: Config, run_dir: Path, ranks: Ranks = ALONE) -> Outcome | None:
    """The outcome of a resume if the newest checkpoint has reached a stop rule; None if there is something to do.

    before: the settings of the run so far. A run that was killed after it had reached one of them is resumed: its last
    row and its status are missing. Raises RunBusy if another process trains in the folder.
    """
    with _locked(run_dir) if ranks.is_leader else nullcontext():  # rank 0 may train already
        try:
            newest = checkpoint.newest(run_dir, move_damaged=False)
        except CheckpointError:  # the resume itself will say so
            newest = None
    if newest is None:
        return None
    state = checkpoint.read_state(newest)
    episodes, training_return = stored_episodes(state, len(config.env.tasks)), state.get("training_return")
    # Earlier versions stored no episodes, and no return but that of 100 of them.
    in_mean = episodes.in_mean if "episodes" in state else EPISODES_IN_MEAN
    settled = episodes.settled_return if "episodes" in state else training_return
    env_steps = int(state["env_steps"])
    progress = Progress(env_steps, int(state.get("frames", env_steps)), float(state["seconds"]), settled)
    rules = reached_rules(config.stop, progress)
    unrecorded = read_status(run_dir).get("state") == "running" and reached_rules(before.stop, progress)
    if not rules or unrecorded:
        return None
    outcome = Outcome.of(Exit.FINISHED, f"nothing to do: {sentence_of(rules)}; nothing was changed")
    outcome.checkpoint, outcome.env_steps, outcome.run_dir = str(newest), env_steps, str(run_dir)
    outcome.environment_steps = state.get("environment_steps") or None
    outcome.training_return, outcome.episodes = training_return, in_mean
    # Nothing was changed: a resume continues with the rules of before, not with those typed now.
    outcome.resume_settings, outcome.rank = raised_settings(reached_rules(before.stop, progress)), ranks.rank
    return outcome


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    lock = lock_folder(run_dir, lambda line: None)
    try:
        yield
    finally:
        os.close(lock)
