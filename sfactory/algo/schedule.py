"""Learning-rate schedules: pure functions of the current rate and of measurements of the last update.

All numbers are Python floats. Copying ``kl``, ``ess`` or ``lag`` from the device costs one synchronization per update,
and only the schedules that use them do it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple


class ScheduleState(NamedTuple):
    """Inputs of a schedule."""

    initial_lr: float
    """As configured."""
    progress: float = 0.0
    """env_steps / stop.env_steps, in 0..1; in env steps, so that it does not depend on the batch size."""
    kl: float = 0.0
    """KL of the policy before the last update to the one after it, over its whole batch."""
    ess: float = 1.0
    """Effective sample size of the batch as a fraction, in 0..1."""
    kl_target: float = 0.01
    """kl_adaptive: target of the KL."""
    lr_min: float = 1e-6
    """kl_adaptive: smallest rate."""
    lr_max: float = 1e-2
    """kl_adaptive: largest rate."""
    lag: float = 0.0
    """Mean lag of the batch that is trained on next, in updates."""
    decay_share: float = 1.0
    """linear: share of the run, at its end, in which the rate falls."""


def constant(lr: float, state: ScheduleState) -> float:
    """Return the configured learning rate."""
    return state.initial_lr


def linear(lr: float, state: ScheduleState) -> float:
    """Decrease linearly to zero at the end of the run, in its last `decay_share`."""
    left = 1.0 - min(max(state.progress, 0.0), 1.0)
    return state.initial_lr * min(left / state.decay_share, 1.0)


def kl_adaptive(lr: float, state: ScheduleState) -> float:
    """Divide by 1.5 above twice the target KL, multiply by 1.5 below half of it, within [lr_min, lr_max].

    As in Sample Factory and rsl_rl, once per update. A KL that is not finite decreases the rate.
    """
    if not math.isfinite(state.kl) or state.kl > 2.0 * state.kl_target:
        lr = lr / 1.5
    elif state.kl < 0.5 * state.kl_target:
        lr = lr * 1.5
    return min(max(lr, state.lr_min), state.lr_max)


def ess(lr: float, state: ScheduleState) -> float:
    """VCPO (arXiv 2602.17616): initial_lr * sqrt(min(1, ess / base)), because stale data have fewer effective samples.

    base is 1, as in the authors' code. There every minibatch has a rate of its own, by the weights of its trajectories.
    Ours is one rate per update, by the weights policy / behavior of the rows in the last minibatch of the one before.
    """
    fraction = state.ess if math.isfinite(state.ess) else 0.0
    return state.initial_lr * math.sqrt(min(max(fraction, 0.0), 1.0))


def staleness(lr: float, state: ScheduleState) -> float:
    """Divide by the mean lag of the batch, where it is more than 1 (Zhang et al. 2016, arXiv 1511.05950).

    There every gradient of an asynchronous worker is divided by its own lag. The bias of a gradient from data of lag S
    is of order S * lr (arXiv 2607.01083), so that this rate keeps it constant.
    """
    return state.initial_lr / max(1.0, state.lag)


def between(first: float, last: float, progress: float) -> float:
    """The value on the line from `first` to `last` at this share of the run."""
    return first + (last - first) * min(max(progress, 0.0), 1.0)


SCHEDULES: dict[str, Callable[[float, ScheduleState], float]] = {
    "constant": constant,
    "linear": linear,
    "kl_adaptive": kl_adaptive,
    "ess": ess,
    "staleness": staleness,
}
