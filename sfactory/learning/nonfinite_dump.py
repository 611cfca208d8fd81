"""What is kept of an update that was not finite, for whoever wants to know why (exit 9)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAME = "non-finite"


def write(folder: Path, batch: Mapping[str, torch.Tensor], model: torch.nn.Module, stats: Mapping[str, Any]) -> Path:
    """`non-finite.npz`, the batch as the learner saw it, [T(+1), B, ...], and `non-finite.json`, what stands out in it.

    batch: the learner's batch on the host. stats: metrics of the last update. Returns the path of the JSON.
    """
    arrays = {name.replace("/", "."): tensor.numpy() for name, tensor in batch.items()}
    np.savez(folder / f"{NAME}.npz", **arrays)  # type: ignore[arg-type]  # arrays by name, no pickle
    weights = {name: x.detach().float().cpu().numpy() for name, x in model.state_dict().items()}
    report = {
        "batch": {name: _range(array) for name, array in arrays.items()},
        "weights": {name: _range(array) for name, array in weights.items()},
        "stats": {name: _plain(float(value)) for name, value in stats.items()},
    }
    path = folder / f"{NAME}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def _range(array: np.ndarray) -> dict[str, Any]:
    """Without a copy of what may be gigabytes of pictures."""
    finite = np.isfinite(array) if array.dtype.kind == "f" else np.True_
    count = int(np.count_nonzero(finite)) if array.dtype.kind == "f" else array.size
    found: dict[str, Any] = {"shape": list(array.shape), "not_finite": array.size - count}
    if not count:
        return found
    low, high = (np.inf, -np.inf) if array.dtype.kind == "f" else (array.flat[0], array.flat[0])
    with np.errstate(over="ignore"):
        mean = array.mean(dtype=np.float64, where=finite)
    return found | {
        "min": float(array.min(where=finite, initial=low)),
        "mean": float(mean),
        "max": float(array.max(where=finite, initial=high)),
    }


def _plain(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)
