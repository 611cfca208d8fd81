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

    batch: the learner's staging tensors. stats: metrics of the last update. Returns the path of the JSON.
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
    finite = array[np.isfinite(array)].astype(np.float64)
    found = {"shape": list(array.shape), "not_finite": int(array.size - finite.size)}
    return found | ({"min": finite.min(), "mean": finite.mean(), "max": finite.max()} if finite.size else {})


def _plain(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)
