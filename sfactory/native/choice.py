"""Decide whether a network is computed by the native kernels."""

from __future__ import annotations

import torch

from sfactory.config import Config
from sfactory.errors import SettingError
from sfactory.model.actor_critic import ActorCritic
from sfactory.native.library import NoKernels, load
from sfactory.native.network import unsupported


def why_not_native(config: Config, model: ActorCritic, device: torch.device, precision: str) -> str:
    """Why this network is computed by torch, in one line; empty: the native kernels compute it.

    Builds the kernels at the first call on a machine. Raises SettingError if `run.kernels native` cannot be honored.
    """
    kernels = config.run.kernels
    if kernels in ("torch", "autograd"):
        return f"run.kernels is {kernels}"
    reason = ""
    if device.type != "cpu":
        reason = f"the native kernels are for the CPU, and this is {device.type}"
    elif precision == "bf16":
        reason = f"the native kernels compute in fp32, and the precision is {precision}"
    elif unfit := unsupported(model):
        reason = f"the native kernels do not support {unfit}"
    else:
        try:
            load()
        except NoKernels as error:
            reason = str(error)
    if reason and kernels == "native":
        raise SettingError(f"run.kernels native: {reason}; use auto")
    return reason
