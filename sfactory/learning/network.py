"""Build the network of a run: the same initial weights for the same seed in every process."""

from __future__ import annotations

import threading

import torch

from sfactory.config import Config
from sfactory.envs import EnvSpec
from sfactory.learning.objectives import objective_class
from sfactory.model.actor_critic import ActorCritic

_SEEDED = threading.Lock()
"""Held while torch's global generator is seeded: threads that train at the same time would draw from one stream."""


def build_model(config: Config, spec: EnvSpec) -> ActorCritic:
    """Build the network of the run's objective for an environment, with weights drawn from `run.seed`."""
    with _SEEDED, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return objective_class(config).build_model(config, spec)
