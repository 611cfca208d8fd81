"""Rescale the settings that depend on the batch size, so that learning curves over env steps stay the same.

``factor`` c *divides* the batch, as in the paper; 0.25 is a batch four times larger. Both rules are pure maps from
settings to settings, applied once at start-up and printed. Only the settings below are considered, and only if
present; all others are returned unchanged.

    lr                learning rate of Adam          lr_min, lr_max   its bounds, with kl_adaptive
    beta1, beta2      decays of Adam                 adam_eps      its epsilon (only for a warning)
    center_of_mass    of the EWMA proximal policy, in optimizer steps
    advantage_span    of the advantage normalizer, in updates
    target_span       of the normalizer of value targets, in updates
    envs_per_group    determines the batch           minibatches   optimizer steps per epoch
    forced_lag        in updates                     epochs        (only for a warning)
    snapshot_age      of the proximal policy, in updates
    snapshots_kept    versions, one per update
    policy_updates    between two auxiliary phases of PPG, in updates
    phase_minibatches of an auxiliary phase, per update; 0: those of the updates
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

TARGET_SPAN = 199.0
"""Updates over which the statistics of value targets are averaged, before `rescale`: a decay of 0.99."""


class Row(NamedTuple):
    """One changed setting, for printing."""

    name: str
    before: float
    after: float
    why: str


class Rescaled(NamedTuple):
    """Result of `rescale`."""

    settings: dict[str, float]
    """The new settings, unchanged ones included."""
    rows: list[Row]
    """The changed settings."""
    warnings: list[str]
    """Assumptions of the rule that do not hold."""


Rule = Callable[[float, float], float]
"""(value, c) -> new value."""


def rescaled_span(span: float, c: float) -> float:
    """Updates that an average spans with a batch divided by ``c``; 1 is each update alone."""
    return max(1.0, span * c)


_ENVS: dict[str, tuple[Rule, str]] = {
    "envs_per_group": (lambda x, c: x / c, "the batch is divided by c through fewer environments; T is unchanged"),
    "forced_lag": (lambda x, c: x * c, "c times as many updates in the same env steps"),
    "snapshot_age": (lambda x, c: x * c, "c times as many updates in the same env steps"),
    "snapshots_kept": (lambda x, c: max(1, math.ceil(x * c)), "versions of the same env steps, rounded up"),
    "policy_updates": (lambda x, c: x * c, "auxiliary phase: after the same env steps, on as many rows"),
    "advantage_span": (rescaled_span, "advantage normalizer: the same span in env steps"),
    "target_span": (rescaled_span, "normalizer of value targets: the same span in env steps"),
}

HILTON: dict[str, tuple[Rule, str]] = {
    **_ENVS,
    "lr": (lambda x, c: x / math.sqrt(c), "Adam: divided by sqrt(c)"),
    "lr_min": (lambda x, c: x / math.sqrt(c), "bound of the learning rate, as the rate itself"),
    "lr_max": (lambda x, c: x / math.sqrt(c), "bound of the learning rate, as the rate itself"),
    "beta1": (lambda x, c: x ** (1.0 / c), "Adam: beta^(1/c), the same memory in env steps"),
    "beta2": (lambda x, c: x ** (1.0 / c), "Adam: beta^(1/c), the same memory in env steps"),
    "center_of_mass": (lambda x, c: x * c, "proximal average: the same age in env steps"),
}
"""Hilton et al. 2021, arXiv 2110.00641, sec. 4. The steps per update are constant, so minibatches shrink with
the batch."""

MORE_MINIBATCHES: dict[str, tuple[Rule, str]] = {
    **_ENVS,
    "minibatches": (
        lambda x, c: x / c,
        "minibatch size and learning rate are unchanged; the number follows the batch",
    ),
    "phase_minibatches": (lambda x, c: x / c, "auxiliary phase: the size of its minibatches is unchanged too"),
}
"""arXiv 2603.06009: scale the number of minibatches only. The averages of the optimizer and of the proximal policy
count optimizer steps, whose size is unchanged, so they are unchanged too."""

NONE: dict[str, tuple[Rule, str]] = {"envs_per_group": _ENVS["envs_per_group"]}
"""Only the batch changes."""

RULES = {"hilton": HILTON, "more_minibatches": MORE_MINIBATCHES, "none": NONE}
_INTEGERS = (
    "envs_per_group",
    "forced_lag",
    "minibatches",
    "snapshot_age",
    "snapshots_kept",
    "policy_updates",
    "phase_minibatches",
)


def rescale(settings: Mapping[str, float], factor: float, rule: str = "hilton") -> Rescaled:
    """Settings for a batch divided by ``factor``, the rows that changed, and warnings.

    Raises ValueError if a count would not be an integer: rounding it would silently change the batch.
    """
    if not (math.isfinite(factor) and factor > 0.0):
        raise ValueError(f"batch factor is {factor}, expected a positive number (4: a quarter of the batch)")
    if rule not in RULES:
        raise ValueError(f"batch rule is {rule!r}, expected one of {', '.join(RULES)}")
    new, rows = dict(settings), []
    for name, (change, why) in RULES[rule].items():
        if name not in settings:
            continue
        before = settings[name]
        after = before if factor == 1.0 else change(before, factor)
        if name in _INTEGERS:
            if abs(after - round(after)) > 1e-9 or (before >= 1 and after < 1):
                raise ValueError(
                    f"{name} {before:g} becomes {after:g} at batch factor {factor:g}, expected a whole number"
                )
            after = type(before)(round(after))
        if after != before:
            new[name] = after
            rows.append(Row(name, before, after, why))
    return Rescaled(new, rows, _warnings(settings, new, factor, rule))


def _warnings(settings: Mapping[str, float], new: Mapping[str, float], factor: float, rule: str) -> list[str]:
    if factor == 1.0:
        return []
    warnings = []
    epochs = settings.get("epochs", 1)
    if epochs != 1:
        warnings.append(f"epochs is {epochs:g}: the rules are derived for one epoch only")
    if rule == "hilton":
        epsilon = settings.get("adam_eps", 0.0)
        if epsilon > 1e-7:
            invariant = epsilon * math.sqrt(factor)
            warnings.append(
                f"adam_eps is {epsilon:g} and is not rescaled: the rule assumes that it is far below the gradients, "
                f"whose noise grows by sqrt(c); an invariant epsilon would be {invariant:.3g}"
            )
        if factor < 1.0:
            warnings.append(
                "a larger batch is invariant only while a minibatch is smaller than the critical batch size"
            )
    span = settings.get("advantage_span")
    if span is not None and span * factor < 1.0:
        warnings.append(f"advantage_span would be {span * factor:g} updates; it is set to 1, the minimum")
    return warnings
