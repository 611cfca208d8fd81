"""Accumulate the metrics of updates and build the learner's metrics row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sfactory.monitor.lag import LagCounts, lag_row, mean


class LearnerMetrics:
    """Metrics of the updates since the last row. They stay on the device until `row` reads all of them at once."""

    def __init__(self, largest: Sequence[str] = ()) -> None:
        """largest: metrics whose largest value is reported; of all others the mean."""
        self.largest = tuple(largest)
        self.updates: list[dict[str, torch.Tensor]] = []
        self.lags: dict[str, Counter[int]] = {}  # sampler -> lag -> valid steps
        self.replayed_lags: Counter[int] = Counter()  # lag -> valid steps that were trained on again
        self.ages: Counter[int] = Counter()  # updates since they were fresh -> the same steps
        self.job_lags: Counter[int] = Counter()  # of all ranks, where there are several

    def add_update(self, metrics: dict[str, torch.Tensor]) -> None:
        """Metrics of one update, [] each. Those of a further phase are missing in the updates without it."""
        self.updates.append(metrics)

    def add_lag(self, sampler: str, counts: LagCounts) -> None:
        """Steps of a sampler, by lag in updates."""
        self.lags.setdefault(sampler, Counter()).update(counts)

    def add_replayed(self, age: int, counts: LagCounts) -> None:
        """Steps of a slot that is trained on again, by lag in updates. age: updates since it was fresh."""
        self.replayed_lags.update(counts)
        self.ages[age] += sum(counts.values())

    def add_lag_of_job(self, counts: LagCounts) -> None:
        """Steps of all ranks, by lag in updates."""
        self.job_lags.update(counts)

    def row(self) -> dict[str, float]:
        """Metrics and lags since the last row: the only synchronization per log interval. Clears them."""
        row: dict[str, float] = {}
        if self.updates:
            names = [name for name in self.updates[0] if all(name in m for m in self.updates)]
            table = torch.stack([torch.stack([m[name].float() for name in names]) for m in self.updates])
            row = dict(zip(names, table.mean(0).tolist(), strict=True))
            row |= {name: float(table[:, names.index(name)].max()) for name in self.largest if name in row}
            for name in sorted(set().union(*self.updates).difference(names)):
                row[name] = float(torch.stack([m[name].float() for m in self.updates if name in m]).mean())
        row |= lag_row(self.lags, self.replayed_lags, self.job_lags)
        self.updates, self.lags = [], {}
        self.replayed_lags, self.ages, self.job_lags = Counter(), Counter(), Counter()
        return row

    def replay_row(self) -> dict[str, float]:
        """Share, age and lag of the steps that were trained on again since the last row; call it before `row`."""
        fresh: Counter[int] = Counter()
        for counts in self.lags.values():
            fresh.update(counts)
        replayed, row = sum(self.replayed_lags.values()), dict[str, float]()
        if all_of := sum(fresh.values()) + replayed:
            row["replay/share"] = replayed / all_of
        if replayed:
            row["replay/age"] = mean(self.ages)
            row["replay/oldest"] = float(max(self.ages))
        if fresh:
            row |= {"replay/fresh_lag": mean(fresh), "replay/largest_fresh_lag": float(max(fresh))}
        return row

    # -- exact resume ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "metrics": [{name: float(value) for name, value in row.items()} for row in self.updates],
            "lags": {sampler: [_repeated(counts)] for sampler, counts in self.lags.items()},
            "replayed_lags": _repeated(self.replayed_lags),
            "ages": _repeated(self.ages),
            **({"job_lags": [list(pair) for pair in self.job_lags.items()]} if self.job_lags else {}),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.updates = [
            {name: torch.tensor(value, device=device) for name, value in row.items()} for row in state["metrics"]
        ]
        self.lags = {sampler: Counter(np.concatenate(lags).tolist()) for sampler, lags in state["lags"].items()}
        self.replayed_lags, self.ages = (Counter(list(state.get(name, ()))) for name in ("replayed_lags", "ages"))
        self.job_lags = Counter(dict(state.get("job_lags", [])))


def _repeated(counts: LagCounts) -> np.ndarray:
    """The lag of every step [n] int64: the form of checkpoints, which older versions read too."""
    return np.repeat(np.array(list(counts), np.int64), list(counts.values()))
