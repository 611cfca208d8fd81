"""Build the network of a run: the same initial weights for the same seed in every process."""

from __future__ import annotations

import torch

from sfactory.config import Config
from sfactory.envs import EnvSpec
from sfactory.model.actor_critic import ActorCritic


def build_model(config: Config, spec: EnvSpec) -> ActorCritic:
    """Build the actor-critic for an environment, with weights drawn from `run.seed`."""
    settings = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return ActorCritic(
            spec.obs,
            spec.actions,
            encoder=settings.encoder,
            hidden=settings.hidden,
            activation=settings.activation,
            core=settings.core,
            core_size=settings.core_size,
            separate=settings.separate,
            normalize_obs=config.normalize.obs,
            log_std_init=settings.log_std_init,
            squash=settings.squash,
            mask=spec.mask,
        )
