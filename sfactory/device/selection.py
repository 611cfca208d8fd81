"""Select device and precision of the networks from the settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


def pick_device(name: str) -> torch.device:
    """Device by name; `auto` is CUDA if available. A CUDA device always has an index.

    Raises ValueError if CUDA is requested and not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--run.device {name}: torch finds no CUDA device; use cpu or auto")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def precision(name: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Context of the network's forward pass: autocast for bf16, nothing for fp32.

    name: fp32 or bf16; auto is fp32 here, where nothing is measured. Log-probabilities and values are computed in fp32
    in every case.
    """
    if name != "bf16":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
