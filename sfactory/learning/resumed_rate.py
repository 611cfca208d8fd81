"""The learning rate with which a resumed run goes on, in words too where it is another than before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfactory.algo.schedule import SCHEDULES, ScheduleState
from sfactory.config import Config

RISE, FALL = 1.05, 0.7
"""Factors within which the rate may change without a word where only the rate is known: a schedule changes it a little
in every update."""
LAST_PART = 0.95
"""Share of a run after which a linear rate falls fast by itself."""


def schedule_state(config: Config) -> dict[str, Any]:
    """Entries of a checkpoint's state: everything that the learning rate depends on, but measurements."""
    o = config.optim
    return {
        "initial_lr": o.lr, "schedule": o.schedule, "schedule_end": config.stop.env_steps, "decay_share": o.decay_share
    }  # fmt: skip


def resumed_rate(config: Config, state: Mapping[str, Any], env_steps: int) -> tuple[float, str]:
    """The rate that the schedule continues from, and one line if the next update uses another one because of a setting.

    state: of the checkpoint, with `lr`, `kl`, `ess` and, in newer ones, `lag` and `schedule_state`. Where optim.lr was
    changed since, kl_adaptive begins again with the new one; the other schedules depend on optim.lr alone.
    """
    now = schedule_state(config)
    # Checkpoints of earlier versions do not have all of them. Theirs had no decay_share: it was 1.
    then = {name: state.get(name, value) for name, value in {**now, "decay_share": 1.0}.items()}
    last = float(state["lr"])
    lr = last if then["initial_lr"] == now["initial_lr"] else config.optim.lr
    following = _next(now, lr, state, env_steps)
    if "schedule_end" in state:
        changed = following != _next(then, last, state, env_steps)
    else:  # of an earlier version, which stored no more than optim.lr and the rate itself
        lowest = 0.0 if now["schedule"] == "linear" and env_steps >= LAST_PART * config.stop.env_steps else FALL
        changed = not lowest * last <= following <= RISE * last
    if not changed:
        return lr, ""
    end = f", 0 at stop.env-steps {config.stop.env_steps:,}" if config.optim.schedule == "linear" else ""
    why = f"optim.lr {config.optim.lr:g}, optim.schedule {config.optim.schedule}{end}"
    return lr, f"learning rate: {last:.3g} before, {following:.3g} from here on ({why})"


def _next(schedule: Mapping[str, Any], lr: float, state: Mapping[str, Any], env_steps: int) -> float:
    """The rate of the next update. kl_adaptive changes it by what was measured, not because of a setting."""
    if schedule["schedule"] == "kl_adaptive":
        return lr
    end = schedule["schedule_end"]
    progress = min(env_steps / end, 1.0) if end else 0.0
    measured = ScheduleState(
        schedule["initial_lr"], progress, float(state["kl"]), float(state["ess"]), lag=float(state.get("lag", 0.0)),
        decay_share=schedule["decay_share"],
    )  # fmt: skip
    return SCHEDULES.get(schedule["schedule"], SCHEDULES["constant"])(lr, measured)  # of another version: as constant
