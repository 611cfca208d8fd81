"""Combine the values of metrics within one row, as the table says."""

from __future__ import annotations

from collections.abc import Mapping

from sfactory.monitor.table import METRICS

Partial = dict[str, tuple[float, float]]
"""Name -> (value, count). Of a mean the value is the sum of `count` measurements. What a worker sends."""


class Accumulator:
    """Mean, sum, maximum or last value per metric: `Metric.combine` of the table says which."""

    def __init__(self) -> None:
        self._values: Partial = {}

    def add(self, name: str, value: float, count: float = 1.0) -> None:
        """Add one measurement; of a mean `value` may be the sum of `count` of them. KeyError for an unknown name."""
        combine = METRICS[name].combine
        before, before_count = self._values.get(name, (value, 0.0))
        if combine in ("mean", "sum"):
            value = before + value if before_count else value
        elif combine == "max":
            value = max(before, value)
        self._values[name] = value, before_count + count

    def merge(self, partial: Mapping[str, tuple[float, float]]) -> None:
        """Add what another accumulator has drained."""
        for name, (value, count) in partial.items():
            self.add(name, value, count)

    def drain(self) -> Partial:
        """Everything since the last call."""
        values, self._values = self._values, {}
        return values

    def drain_row(self) -> dict[str, float]:
        """Metric -> combined value since the last call."""
        return {
            name: float(value / count if METRICS[name].combine == "mean" else value)
            for name, (value, count) in self.drain().items()
        }
