"""Select device and precision of the networks from the settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Device by name; `auto` is CUDA if available. A CUDA device always has an index.

    local_rank: of the processes of a job on this machine, each of which has a CUDA device of its own, unless the name
    has an index.

    Raises ValueError if CUDA is requested and not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"run.device {name}: torch finds no CUDA device; use cpu or auto")
    if device.type == "cuda" and device.index is None:
        of_rank = local_rank % max(1, torch.cuda.device_count())
        device = torch.device("cuda", of_rank if local_rank else torch.cuda.current_device())
    return device


def precision(name: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Context of the network's forward pass: autocast for bf16, nothing for fp32.

    name: fp32 or bf16; auto is fp32 here, where nothing is measured. Log-probabilities and values are computed in fp32
    in every case.
    """
    if name != "bf16":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
