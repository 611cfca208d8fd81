"""Preflight checks that need the file system or the machine. Free of torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

from sfactory import pickled
from sfactory.algo.surrogates.options import DISCRETE_ONLY
from sfactory.config import Config, Model, to_dict
from sfactory.config.algorithms import ALGORITHMS
from sfactory.config.toml_file import from_toml
from sfactory.device.machine import shows_gpu
from sfactory.envs import EnvSpec
from sfactory.run import checkpoint
from sfactory.run.obs_reading import check_reading
from sfactory.run.recorded_spec import check_same_actions, recorded_spec


def check_own_code(setting: str, name: str) -> None:
    """ValueError for a network module:Class whose module does not exist. It is not imported: it needs torch."""
    module, colon, _ = name.partition(":")
    if pickled.is_pickled(name):
        return
    try:
        found = not colon or importlib.util.find_spec(module.partition(".")[0]) is not None
    except ValueError:  # a module without a spec, such as __main__
        found = False
    if not found:
        raise ValueError(f"{setting} {name}: no module {module} here ({os.getcwd()}) or among the packages")


def check_objective(name: str, spec: EnvSpec) -> None:
    """ValueError for an objective that is defined for discrete actions only, where there are others."""
    continuous = [leaf for leaf, action in spec.actions.items() if action.kind == "box"]
    if name in DISCRETE_ONLY and continuous:
        raise ValueError(
            f"surrogate.objective {name} needs discrete actions: it bounds the change of probabilities, and "
            f"{spec.name} has continuous actions ({', '.join(continuous)}); use decoupled or ppo"
        )


def check_continuous(config: Config, spec: EnvSpec) -> None:
    """ValueError for a setting of continuous actions where there are none."""
    value = config.model.log_std_init
    if value != Model.log_std_init and not any(action.kind == "box" for action in spec.actions.values()):
        raise ValueError(
            f"model.log-std-init {value:g} has no effect: {spec.name} has no continuous actions; leave it out"
        )


def check_algorithm(name: str, spec: EnvSpec) -> None:
    """ValueError for an algorithm that learns something of every choice where the action is not one choice."""
    learned = ALGORITHMS[name].one_action
    if not learned:
        return
    action, *more = spec.actions.values()
    if more or action.kind != "discrete" or len(action.sizes) != 1:
        leaves = ", ".join(f"{leaf} {one.kind}" for leaf, one in spec.actions.items())
        heads = f" of {len(action.sizes)} parts" if action.kind == "discrete" and not more else ""
        raise ValueError(
            f"algorithm.name {name} needs one discrete action, whose {learned} it learns, and {spec.name} has {leaves}"
            f"{heads}; use actor_critic"
        )


def check_init_from(config: Config, spec: EnvSpec) -> None:
    """ValueError, EnvError or CheckpointError if the weights of `run.init_from` are missing or of another network."""
    found = checkpoint.read_from(Path(config.run.init_from), ())
    path = found.path.resolve()
    check_reading(found.state, spec, config)
    if (before := recorded_spec(found.state)) is not None:
        check_same_actions(before, spec, f"run.init-from {path}")
    settings = path.parent.parent / "config.toml"
    if not settings.is_file():  # a checkpoint that was copied elsewhere: the learner compares the shapes
        return
    trained = from_toml(settings)
    loaded, current = (
        {
            f"{section}.{name}": value
            for section in ("algorithm", "model")
            for name, value in to_dict(c)[section].items()
        }
        for c in (trained, config)
    )
    differences = [
        f"{name} {loaded[name]!r}, not {current[name]!r}" for name in current if loaded[name] != current[name]
    ]
    if trained.surrogate.has_median_head != config.surrogate.has_median_head:
        differences.append("median head, which only surrogate.objective bpo with surrogate.median-head has")
    targets = [c.normalize.value_targets for c in (trained, config)]
    if config.model.value_head != "scalar" and targets[0] != targets[1]:
        differences.append(f"normalize.value_targets {targets[0]!r}, not {targets[1]!r}: the units of its bins")
    if differences:
        raise ValueError(f"run.init-from {config.run.init_from}: another network: its {', its '.join(differences)}")


def check_device(setting: str, name: str, signs: Iterable[str] | None = None) -> None:
    """ValueError for CUDA on a machine without any sign of a GPU."""
    if name.startswith("cuda") and not shows_gpu(signs):
        raise ValueError(f"{setting} {name}: this machine shows no GPU; use cpu or auto (see sfactory doctor)")
