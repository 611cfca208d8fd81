"""Read the specs of a run's environments in a process of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfactory.config import Config
from sfactory.device.ranks import ALONE, Ranks
from sfactory.envs import EnvError, EnvOptions, EnvSpec, listen_to_builds, make_group, make_specs
from sfactory.errors import OnlyRegisteredHere, UnknownEnvError
from sfactory.run import checkpoint
from sfactory.run.recorded_spec import recorded_spec
from sfactory.supervisor.env_child import ChildClock
from sfactory.supervisor.env_task import run_env_task


@dataclass(frozen=True)
class SpecJob:
    """Builds one environment of every task, one after the other, and returns their specs."""

    names: Sequence[str]
    options: EnvOptions
    env_index: int
    """Number of each of the environments."""

    def run(self, clock: ChildClock) -> tuple[EnvSpec, ...]:
        """See `env_child.Job`."""
        clock.build(1)
        with listen_to_builds(lambda env: clock.build(1)):
            return make_specs(self.names, self.options, self.env_index)


@dataclass(frozen=True)
class RenderJob:
    """Renders the first observation of one environment of every task; returns width and height of each picture."""

    names: Sequence[str]
    options: EnvOptions
    env_index: int
    """Number of each of the environments."""

    def run(self, clock: ChildClock) -> list[tuple[int, int]]:
        """See `env_child.Job`."""
        sizes = []
        for name in self.names:
            clock.build(1)
            group: Any = make_group(name, 1, [0], self.options, render=True, env_index=self.env_index)
            group.reset()
            height, width, _ = group.render(0).shape
            sizes.append((width, height))
            clock.build(1)
            group.close()
        return sizes


def check_rendering(config: Config, ranks: Ranks = ALONE) -> None:
    """EnvError if eval.video is set and an environment cannot be rendered here. Graphics libraries may even crash."""
    if not config.eval.video:
        return
    try:
        run_env_task(RenderJob(config.env.tasks, config.env.options, _first_beside(config, ranks)), config.env)
    except EnvError as error:
        raise EnvError(f"eval.video: {error}; train without it: --eval.video false") from error


def read_specs(config: Config, ranks: Ranks = ALONE) -> tuple[EnvSpec, ...]:
    """Return the specs of a run's tasks. ranks: each builds an environment with a number of its own.

    Raises EnvError if an environment cannot be built, crashes, or takes longer than `env.build_timeout`;
    UnguardedError.
    """
    return _read(config, config.env.tasks, _first_beside(config, ranks))


def _first_beside(config: Config, ranks: Ranks) -> int:
    """Number of an environment that a rank builds beside those of training."""
    return ranks.world_size * config.training_envs + ranks.rank


def _read(config: Config, tasks: Sequence[str], env_index: int) -> tuple[EnvSpec, ...]:
    try:
        specs: tuple[EnvSpec, ...] = run_env_task(SpecJob(tasks, config.env.options, env_index), config.env)
        return specs
    except UnknownEnvError as error:
        raise _registered_here(tasks) or error from None


def spec_of_policy(path: Path, config: Config) -> EnvSpec:
    """Return the spec that a verified checkpoint records. Earlier versions recorded none: then it is read.

    config: of the checkpoint's run. Raises CheckpointError, and what `read_specs` raises.
    """
    spec = recorded_spec(checkpoint.read_state(path))
    return spec or _read(config, config.env.tasks[:1], checkpoint.index_beside(path, config))[0]


def _registered_here(tasks: Sequence[str]) -> EnvError | None:
    """The error for an id that this process has registered and its workers do not know; None if it has not."""
    registry = getattr(sys.modules.get("gymnasium"), "registry", {})
    for task in tasks:
        family, _, env_id = task.partition("/")
        if family == "gymnasium" and env_id in registry:
            return OnlyRegisteredHere(
                f"{task} is registered in the main process only: workers do not run what stands below the guard of a "
                "script, or in a notebook; register it in a file of its own, for example my_envs.py, and train "
                f"gymnasium/my_envs:{env_id}",
                task,
            )
    return None
