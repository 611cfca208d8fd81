"""Write the batch and statistics of an update that was not finite, for debugging (exit 9)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAME = "non-finite"


def write(folder: Path, batch: Mapping[str, torch.Tensor], model: torch.nn.Module, metrics: Mapping[str, Any]) -> Path:
    """Write `non-finite.npz`, the batch, and `non-finite.json`, ranges of the values of the batch and the weights.

    batch: [T(+1), B, ...] on the host. metrics: those of the update. Returns the path of the JSON file.
    """
    arrays = {name.replace("/", "."): tensor.numpy() for name, tensor in batch.items()}
    np.savez(folder / f"{NAME}.npz", **arrays)  # type: ignore[arg-type]  # arrays by name, no pickle
    weights = {name: x.detach().float().cpu().numpy() for name, x in model.state_dict().items()}
    report = {
        "batch": {name: _range(array) for name, array in arrays.items()},
        "weights": {name: _range(array) for name, array in weights.items()},
        "stats": {name: _json_number(float(value)) for name, value in metrics.items()},
    }
    path = folder / f"{NAME}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def _range(array: np.ndarray) -> dict[str, Any]:
    """Shape, range and number of values that are not finite. Makes no copy: observations may be gigabytes."""
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


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: those become strings."""
    return value if math.isfinite(value) else str(value)
