"""Settings of each algorithm: those without effect, and its own values in place of a preset's.

`algorithm.name` selects the class that is trained (`sfactory.learning.objectives`). Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfactory.config import Config


@dataclass(frozen=True)
class AlgorithmRules:
    """Settings of one algorithm."""

    unused: tuple[str, ...]
    """Prefixes of settings that have no effect, by dotted name."""
    used: tuple[str, ...] = ()
    """Settings that have an effect although a prefix in `unused` covers them."""
    values: dict[str, Any] = field(default_factory=dict)
    """Its values where the preset was made for another algorithm. Files and flags replace them."""
    action_values: bool = False
    """Whether it learns the values of one discrete action and has no policy of its own; epsilon moves with the run."""
    one_action: str = ""
    """What it learns for each choice of one discrete action; other actions are refused. Empty: it learns from any."""
    whole_lanes: bool = False
    """Whether minibatches always are whole lanes, because its loss is one of trajectories."""
    keeps_batches: bool = False
    """Whether it trains again on batches that it keeps itself, in auxiliary phases."""
    further_params: int = 0
    """Numbers of a row that the network computes besides the parameters of the distribution."""
    per_choice: int = 0
    """The same, for every choice of a discrete action."""

    def uses(self, name: str) -> bool:
        """Whether a setting (dotted name) has an effect."""
        return name in self.used or not name.startswith(self.unused)


ALGORITHMS = {
    "actor_critic": AlgorithmRules(unused=("dae.", "ppg.", "pqn.")),
    "dae": AlgorithmRules(
        unused=(
            "ppg.",
            "pqn.",
            "trace.",
            "loss.value_clip",
            "loss.value_sigma",
            "normalize.advantage_span",
            "model.log_std_init",
            "model.squash",
            "model.value_",
        ),
        used=("trace.gamma", "trace.trace_lambda"),
        one_action="advantages",
        whole_lanes=True,
        per_choice=1,
    ),
    "ppg": AlgorithmRules(
        unused=("dae.", "pqn.", "model.value_", "loss.value_sigma"),
        keeps_batches=True,
        further_params=1,  # the auxiliary value
    ),
    "pqn": AlgorithmRules(
        unused=(
            "dae.",
            "ppg.",
            "surrogate.",
            "proximal.",
            "trace.",
            "loss.value_",
            "loss.entropy_",
            "optim.kl_target",
            "optim.sfpo_",
            "model.network",
            "model.separate",
            "model.log_std_init",
            "model.squash",
            "model.value_",
            "normalize.value_targets",
            "normalize.advantage",
        ),
        used=("trace.gamma", "trace.trace_lambda"),
        values={  # purejaxql, config/alg/pqn_minatar.yaml
            "sampling.num_samplers": 0,
            "sampling.groups_per_sampler": 2,
            "sampling.envs_per_group": 64,
            "sampling.rollout_length": 32,
            "batch.epochs": 2,
            "batch.minibatches": 32,
            "trace.trace_lambda": 0.65,
            "optim.lr": 5e-4,
            "optim.schedule": "linear",
            "optim.eps": 1e-8,
            "optim.max_grad_norm": 10.0,
            "model.layer_norm": True,
        },
        action_values=True,
        one_action="values",
        further_params=1,  # epsilon
    ),
}


def rules_of(config: Config) -> AlgorithmRules:
    """The rules of the algorithm of a run."""
    return ALGORITHMS[config.algorithm.name]


def unused_settings(config: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (value, default), of settings that differ from their default and have no effect."""
    rules, found = rules_of(config), {}
    for section in fields(config):
        own = getattr(config, section.name)
        default = type(own)()
        for one in fields(own):
            name = f"{section.name}.{one.name}"
            value, usual = getattr(own, one.name), getattr(default, one.name)
            if value != usual and not rules.uses(name):
                found[name] = value, usual
    return found
