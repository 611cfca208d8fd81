"""The settings of sfactory's presets, for programs that train at the same batches. Standard library only."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = {
    "breakout": "minatar/breakout",
    "pong": "atari/pong",
    "hopper": "mujoco/hopper",
    "cartpole": "classic/cartpole",
    "pendulum": "classic/pendulum",
}
DEFAULTS: dict[str, dict[str, Any]] = {  # of sfactory, for what a preset does not name
    "trace": {"gamma": 0.99, "trace_lambda": 0.95},
    "surrogate": {"clip": 0.2},
    "loss": {"value_coef": 0.5, "entropy_coef": 0.01, "entropy_final": None},
    "optim": {"schedule": "constant", "decay_share": 1.0, "eps": 1e-5, "max_grad_norm": 0.5},
    "model": {"separate": False},
    "normalize": {"obs": False, "reward": False},
}
UNITS = {"k": 10**3, "M": 10**6}


class Preset(NamedTuple):
    """Numbers of one preset, under the names of sfactory's settings."""

    envs: int
    rollout_length: int
    epochs: int
    minibatches: int
    env_steps: int
    values: dict[str, Any]
    """Everything else, by the name of the field."""

    @property
    def minibatch_rows(self) -> int:
        return self.envs * self.rollout_length // self.minibatches


def preset(workload: str) -> Preset:
    """Read the preset of a workload."""
    table = tomllib.loads((CONFIGS / f"{PRESETS[workload]}.toml").read_text())
    sampling, batch, steps = table["sampling"], table["batch"], table["stop"]["env_steps"]
    samplers = sampling.get("num_samplers", 1) or 1  # 0: the same environments on as many samplers as fit
    return Preset(
        envs=samplers * sampling["groups_per_sampler"] * sampling["envs_per_group"],
        rollout_length=sampling["rollout_length"],
        epochs=batch["epochs"],
        minibatches=batch["minibatches"],
        env_steps=int(steps[:-1]) * UNITS[steps[-1]] if isinstance(steps, str) else steps,
        values={k: v for name, values in DEFAULTS.items() for k, v in {**values, **table.get(name, {})}.items()},
    )
