"""Policy lag as metrics: updates between acting and learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sfactory.monitor.table import LAG_SHARES


def lag_row(lags: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    """Mean, 95th percentile and maximum of all steps and of each worker's, and the histogram over all steps.

    lags: worker -> arrays of lags, in updates.
    """
    by_worker = {f"/{worker}": np.concatenate(arrays) for worker, arrays in lags.items() if arrays}
    if not by_worker:
        return {}
    all_lags = np.concatenate(list(by_worker.values()))
    row: dict[str, float] = {}
    for suffix, values in {"": all_lags, **by_worker}.items():
        if len(values):
            row |= {f"lag/mean{suffix}": float(values.mean()), f"lag/p95{suffix}": float(np.percentile(values, 95))}
            row[f"lag/max{suffix}"] = float(values.max())
    if len(all_lags):
        edges = [int(name) for name in LAG_SHARES if name.isdigit()]
        counts = np.bincount(np.searchsorted(edges, all_lags), minlength=len(LAG_SHARES))
        row |= {f"lag/share_{name}": float(n / counts.sum()) for name, n in zip(LAG_SHARES, counts, strict=True)}
    return row
