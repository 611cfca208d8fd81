"""Check that the behavior weight (proximal over behavior) is applied as often as configured. No torch.

`sfactory.algo.surrogates` explains the choices: surrogate and trace count it once, none never, twice two times.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

BEHAVIOR_WEIGHTS = ("surrogate", "trace", "none", "twice")
UNWEIGHTED_TRACES = ("gae",)
NO_OWN_WEIGHT = ("ppo", "impala")  # these two never divide by behavior themselves


class WeightConflict(NamedTuple):
    """Why a combination is refused, and what can be used instead."""

    reason: str
    remedies: tuple[dict[str, str], ...]
    """Alternatives; each is argument of `weight_conflict` -> value, to be set together."""


LAST_REMEDIES: tuple[dict[str, str], ...] = (
    {"behavior_weight": "trace", "trace": "vtrace"},
    {"surrogate": "decoupled"},
    {"surrogate": "decoupled", "behavior_weight": "surrogate"},
)
"""Tried in this order where the usual remedies of a conflict lead to another one. The last is always accepted."""


def weight_conflict(
    trace: str, proximal: str, surrogate: str, behavior_weight: str, fixed: Collection[str] = ()
) -> WeightConflict | None:
    """The conflict of a combination, or None where the weight is counted as often as `behavior_weight` says.

    All arguments are names in the registries of traces, proximal policies and objectives. fixed: arguments that no
    remedy may change.
    """
    found = _conflict(trace, proximal, surrogate, behavior_weight)
    if found is None:
        return None
    given = {"trace": trace, "proximal": proximal, "surrogate": surrogate, "behavior_weight": behavior_weight}

    def accepted(remedy: dict[str, str]) -> bool:
        return not remedy.keys() & set(fixed) and _conflict(**{**given, **remedy}) is None

    usual = tuple(filter(accepted, found.remedies))
    return found._replace(remedies=usual or (next(filter(accepted, LAST_REMEDIES)),))


def _conflict(trace: str, proximal: str, surrogate: str, behavior_weight: str) -> WeightConflict | None:
    """The conflict, with remedies that may lead to another one."""
    in_trace = behavior_weight in ("trace", "twice")
    in_surrogate = behavior_weight in ("surrogate", "twice")
    coupled = proximal == "behavior" and surrogate != "impala"  # the ratio is policy / behavior by itself
    if behavior_weight not in BEHAVIOR_WEIGHTS:
        expected = ", ".join(BEHAVIOR_WEIGHTS)
        return WeightConflict(f"expected one of {expected}", ({"behavior_weight": "surrogate"},))
    if in_trace and trace in UNWEIGHTED_TRACES:
        return WeightConflict(f"{trace} has no weight", ({"trace": "vtrace"}, {"behavior_weight": "surrogate"}))
    if surrogate == "minpro" and behavior_weight != "surrogate":
        return WeightConflict("minpro corrects by policy / behavior itself", ({"behavior_weight": "surrogate"},))
    if in_surrogate and surrogate == "impala":
        weighted = {"trace": "vtrace"} if trace in UNWEIGHTED_TRACES else {}
        return WeightConflict("impala takes its weight from the trace", ({"behavior_weight": "trace", **weighted},))
    if in_surrogate and surrogate in NO_OWN_WEIGHT and not coupled:
        return WeightConflict(
            f"{surrogate} never divides by behavior", ({"surrogate": "decoupled"}, {"proximal": "behavior"})
        )
    if coupled and not in_surrogate:
        count = "a second time" if in_trace else "although it is set to none"
        return WeightConflict(
            f"the ratio over behavior contains the weight already, {count}", ({"behavior_weight": "surrogate"},)
        )
    if in_trace and not in_surrogate and proximal != "recompute" and surrogate != "impala":
        return WeightConflict(
            "the trace weighs the policy at the start of the update, not this proximal policy",
            ({"proximal": "recompute"}, {"behavior_weight": "surrogate"}),
        )
    return None


def check_weights(trace: str, proximal: str, surrogate: str, behavior_weight: str) -> None:
    """Raise ValueError where `weight_conflict` finds one."""
    conflict = weight_conflict(trace, proximal, surrogate, behavior_weight)
    if conflict is not None:
        remedy = ", or ".join(
            " and ".join(f"{name}={value}" for name, value in remedy.items()) for remedy in conflict.remedies
        )
        raise ValueError(
            f"behavior_weight={behavior_weight} with {trace=!s}, {proximal=!s}, {surrogate=!s}: "
            f"{conflict.reason}; use {remedy}"
        )
