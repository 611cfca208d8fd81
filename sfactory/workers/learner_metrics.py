"""Accumulate the metrics of updates and build the learner's metrics row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sfactory.monitor.lag import LagCounts, lag_row


class LearnerMetrics:
    """Metrics of the updates since the last row. They stay on the device until `row` reads all of them at once."""

    def __init__(self, largest: Sequence[str] = ()) -> None:
        """largest: metrics whose largest value is reported; of all others the mean."""
        self.largest = tuple(largest)
        self.updates: list[dict[str, torch.Tensor]] = []
        self.lags: dict[str, Counter[int]] = {}  # sampler -> lag -> valid steps

    def add_update(self, metrics: dict[str, torch.Tensor]) -> None:
        """Metrics of one update, [] each; the names are those of every other update."""
        self.updates.append(metrics)

    def add_lag(self, sampler: str, counts: LagCounts) -> None:
        """Steps of a sampler, by lag in updates."""
        self.lags.setdefault(sampler, Counter()).update(counts)

    def row(self) -> dict[str, float]:
        """Metrics and lags since the last row: the only synchronization per log interval. Clears them."""
        row: dict[str, float] = {}
        if self.updates:
            names = list(self.updates[0])
            table = torch.stack([torch.stack([m[name].float() for name in names]) for m in self.updates])
            row = dict(zip(names, table.mean(0).tolist(), strict=True))
            row |= {name: float(table[:, names.index(name)].max()) for name in self.largest if name in row}
        row |= lag_row(self.lags)
        self.updates, self.lags = [], {}
        return row

    # -- exact resume ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "metrics": [{name: float(value) for name, value in row.items()} for row in self.updates],
            "lags": {sampler: [_repeated(counts)] for sampler, counts in self.lags.items()},
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.updates = [
            {name: torch.tensor(value, device=device) for name, value in row.items()} for row in state["metrics"]
        ]
        self.lags = {sampler: Counter(np.concatenate(lags).tolist()) for sampler, lags in state["lags"].items()}


def _repeated(counts: LagCounts) -> np.ndarray:
    """The lag of every step [n] int64: the form of checkpoints, which older versions read too."""
    return np.repeat(np.array(list(counts), np.int64), list(counts.values()))
