"""The network as both inference and learner build it: same weights, same arithmetic, chosen in one place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from sfactory.model.actor_critic import ActorCritic
from sfactory.workers.wiring import Plan


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


def build_model(plan: Plan) -> ActorCritic:
    """The same initial weights for the same seed, in every process."""
    settings = plan.config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.config.run.seed)
        model = ActorCritic(
            plan.spec.obs,
            plan.spec.actions,
            encoder=settings.encoder,
            hidden=settings.hidden,
            activation=settings.activation,
            core=settings.core,
            core_size=settings.core_size,
            separate=settings.separate,
            normalize_obs=plan.config.normalize.obs,
            log_std_init=settings.log_std_init,
            squash=settings.squash,
            mask=plan.spec.mask,
        )
    schema = plan.schema
    assert model.distribution.num_params == schema.num_params, "the slot and the distribution disagree on parameters"
    assert model.distribution.num_noise == schema.num_noise, "the slot and the distribution disagree on noise"
    assert model.state_size == schema.state_size, "the slot and the core disagree on the recurrent state"
    return model


def precision(name: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Autocast of the network's arithmetic; log-probabilities and values are computed in fp32 either way."""
    if name == "fp32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
