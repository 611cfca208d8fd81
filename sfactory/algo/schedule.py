"""Learning rate of the next update: pure functions of the current one and of what the last update measured.

Everything is a Python float. Reading ``kl`` and ``ess`` off the device is one synchronisation per update, and
only for the two schedules that look at them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple


class ScheduleState(NamedTuple):
    """What a schedule may look at."""

    initial_lr: float
    """As configured."""
    progress: float = 0.0
    """env_steps / stop.env_steps, in 0..1; counted in env steps so that it does not depend on the batch
    size."""
    kl: float = 0.0
    """KL(proximal || policy) or approx_kl of the last update."""
    ess: float = 1.0
    """Effective sample size of the batch as a fraction, in 0..1."""
    kl_target: float = 0.01
    """kl_adaptive: the KL to steer to."""
    lr_min: float = 1e-6
    lr_max: float = 1e-2


def constant(lr: float, state: ScheduleState) -> float:
    """The learning rate as configured."""
    return state.initial_lr


def linear(lr: float, state: ScheduleState) -> float:
    """To zero at the end of the run."""
    return state.initial_lr * (1.0 - min(max(state.progress, 0.0), 1.0))


def kl_adaptive(lr: float, state: ScheduleState) -> float:
    """1.5 times smaller above twice the target, 1.5 times larger below half of it, within [lr_min, lr_max].

    As Sample Factory and rsl_rl do, once per update. A KL that is not finite makes it smaller.
    """
    if not math.isfinite(state.kl) or state.kl > 2.0 * state.kl_target:
        lr = lr / 1.5
    elif state.kl < 0.5 * state.kl_target:
        lr = lr * 1.5
    return min(max(lr, state.lr_min), state.lr_max)


def ess(lr: float, state: ScheduleState) -> float:
    """VCPO (arXiv 2602.17616): initial_lr * sqrt(ess): stale batches hold fewer samples than they count."""
    fraction = state.ess if math.isfinite(state.ess) else 0.0
    return state.initial_lr * math.sqrt(min(max(fraction, 0.0), 1.0))


SCHEDULES: dict[str, Callable[[float, ScheduleState], float]] = {
    "constant": constant,
    "linear": linear,
    "kl_adaptive": kl_adaptive,
    "ess": ess,
}
