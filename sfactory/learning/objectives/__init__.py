"""Objectives by name: what a network learns from a batch."""

from __future__ import annotations

from typing import Any

from sfactory.config import Config
from sfactory.learning.objectives.actor_critic import ActorCriticObjective
from sfactory.learning.objectives.base import Loss, Minibatch, Objective, Phase, Start

OBJECTIVES: dict[str, type[Objective[Any]]] = {"actor_critic": ActorCriticObjective}


def objective_class(config: Config) -> type[Objective[Any]]:
    """The objective of a run; no setting selects another one yet."""
    return OBJECTIVES["actor_critic"]


__all__ = ["OBJECTIVES", "Loss", "Minibatch", "Objective", "Phase", "Start", "objective_class"]
