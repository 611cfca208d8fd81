"""Which kind of worker limits the speed of a run, from one row of metrics."""

from __future__ import annotations

from collections.abc import Mapping

from sfactory.monitor.table import STAGES

BOUND = {"sampler": "sampling-bound", "inference": "inference-bound", "learner": "learner-bound"}
SATURATED = 2 / 3  # busy fraction from which a worker is the bottleneck; below it the workers take turns


def busy_shares(row: Mapping[str, float]) -> dict[str, float]:
    """Worker kind -> fraction of its time it does not wait; only kinds that have reported."""
    reported = {name.split("/")[1] for name in row if name.startswith("stage/")}
    return {kind: 1.0 - row.get(f"stage/{kind}/wait", 0.0) for kind in STAGES if kind in reported}


def bottleneck(row: Mapping[str, float]) -> str:
    """The busiest kind of worker; empty before any has reported."""
    busy = busy_shares(row)
    return max(busy, key=lambda kind: busy[kind]) if busy else ""


def bound(row: Mapping[str, float]) -> str:
    """The bottleneck in one word, as learner-bound; empty before any worker has reported.

    A pipeline has one bottleneck if one kind of worker is busy nearly all the time. Otherwise the workers take turns
    (lockstep, one slot per group, one group per sampler): then each of them counts, the busiest most.
    """
    kind = bottleneck(row)
    if not kind or busy_shares(row)[kind] >= SATURATED:
        return BOUND.get(kind, "")
    return f"in turns, mostly {kind}"
