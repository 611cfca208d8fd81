"""What a member publishes at the end of a round: its score, steps and settings, read from its run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.errors import CheckpointError
from sfactory.monitor.episodes import stored_episodes
from sfactory.monitor.rows import METRICS_FILE
from sfactory.population.plan import Plan
from sfactory.run import checkpoint
from sfactory.run.history import History, Record
from sfactory.run.reader import read_columns
from sfactory.run.takeover import weights_sha256


def publication(plan: Plan, history: History, member: int, round: int, failed: bool) -> Record:
    """The record of a member that has ended a round, from its newest checkpoint that can be used.

    failed: its losses were not finite, so it has no score.
    """
    run_dir, settings = plan.run_dir(member), history.settings(member)
    state, weights = dict[str, Any](), ""
    with contextlib.suppress(CheckpointError):
        found = checkpoint.read_newest(run_dir)
        if found is not None:
            state, weights = found.state, weights_sha256(found.path)
    env_steps = int(state.get("env_steps", 0))
    score, error = (None, 0.0) if failed else _score(plan, run_dir, history.of(member), state)
    return Record(member, round, env_steps, score, error, settings, weights, failed, next_settings=settings)


def _score(plan: Plan, run_dir: Path, before: Sequence[Record], state: dict[str, Any]) -> tuple[float | None, float]:
    """Score and standard error: the newest evaluation of this policy; without evaluations its training return."""
    if plan.config.eval.every:
        since = next((record.env_steps for record in reversed(before) if record.source is not None), -1)
        return evaluated(run_dir, since), 0.0
    episodes = stored_episodes(state, len(plan.config.env.tasks))
    errors = [float(np.std(returns)) / len(returns) ** 0.5 for returns in episodes.returns if returns]
    error = float(np.sqrt(np.sum(np.square(errors)))) / len(errors) if errors else 0.0
    score = state.get("training_return")
    return (None if score is None else float(score)), error


def evaluated(run_dir: Path, since: int) -> float | None:
    """Mean return of the newest evaluation of a policy trained for more than `since` steps; None without one."""
    rows, _ = read_columns(run_dir / METRICS_FILE)
    if "eval/episodic_return" not in rows or "eval/env_steps" not in rows:
        return None
    known = np.isfinite(rows["eval/episodic_return"]) & (rows["eval/env_steps"] > since)
    return float(rows["eval/episodic_return"][known][-1]) if known.any() else None
