"""Objectives by the name of their algorithm: what a network learns from a batch."""

from __future__ import annotations

from typing import Any

from sfactory.config import Config
from sfactory.learning.objectives.actor_critic import ActorCriticObjective
from sfactory.learning.objectives.base import Loss, Minibatch, Objective, Phase, Start
from sfactory.learning.objectives.dae import DaeObjective
from sfactory.learning.objectives.ppg import PpgObjective
from sfactory.learning.objectives.pqn import PqnObjective

OBJECTIVES: dict[str, type[Objective[Any]]] = {
    "actor_critic": ActorCriticObjective,
    "dae": DaeObjective,
    "ppg": PpgObjective,
    "pqn": PqnObjective,
}


def objective_class(config: Config) -> type[Objective[Any]]:
    """The objective of a run, by `algorithm.name`."""
    return OBJECTIVES[config.algorithm.name]


__all__ = ["OBJECTIVES", "Loss", "Minibatch", "Objective", "Phase", "Start", "objective_class"]
