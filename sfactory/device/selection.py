"""Device and precision of the networks, chosen from the settings in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. A CUDA device comes with its number: the current one may become another."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--run.device {name}: torch finds no CUDA device here; use cpu or auto")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def precision(name: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Autocast of the network's arithmetic; log-probabilities and values are computed in fp32 either way."""
    if name == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
