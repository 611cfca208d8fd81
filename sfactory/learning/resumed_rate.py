"""The learning rate with which a resumed run goes on, in words too where it is another than before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfactory.algo.schedule import SCHEDULES, ScheduleState
from sfactory.config import Config

RISE, FALL = 1.05, 0.7
"""Factors within which the rate may change without a word: a schedule changes it a little in every update."""
LAST_PART = 0.95
"""Share of a run after which a linear rate falls fast by itself."""


def resumed_rate(config: Config, state: Mapping[str, Any], env_steps: int) -> tuple[float, str]:
    """The rate that the schedule continues from, and one line if the next update uses another one than the last.

    state: of the checkpoint, with `lr`, `kl`, `ess` and, in newer ones, `initial_lr`: optim.lr as it was. Where it was
    changed since, kl_adaptive begins again with the new one; the other schedules depend on optim.lr alone.
    """
    optim, stop = config.optim, config.stop.env_steps
    before = float(state["lr"])
    lr = before if float(state.get("initial_lr", optim.lr)) == optim.lr else optim.lr
    progress = min(env_steps / stop, 1.0) if stop else 0.0
    following = lr
    if optim.schedule != "kl_adaptive":
        now = ScheduleState(optim.lr, progress, float(state["kl"]), float(state["ess"]), optim.kl_target)
        following = SCHEDULES[optim.schedule](lr, now)
    falls = following < FALL * before and (optim.schedule != "linear" or progress < LAST_PART)
    if not falls and following <= RISE * before:
        return lr, ""
    end = f", 0 at stop.env-steps {stop:,}" if optim.schedule == "linear" else ""
    why = f"optim.lr {optim.lr:g}, optim.schedule {optim.schedule}{end}"
    return lr, f"learning rate: {before:.2g} before, {following:.2g} from here on ({why})"
