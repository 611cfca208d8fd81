"""The plan of a population: what its command asks for, checked, and the settings of a member in a round.

A member is a run that is trained one round after the other: `train` for the first, `resume` for the others, each until
the member's own clock (env_steps) has reached `round * period`. A round ends by stop.frames, so that stop.env-steps
stays the length of the whole training: a linear learning rate falls to 0 at its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfactory.config import Config, parsing, with_settings
from sfactory.config.parsing import ConfigLayer, RawValue, flag_name
from sfactory.errors import SettingError
from sfactory.learning.batch_scaling import rescale_batch
from sfactory.population.jobs import reserved_settings
from sfactory.population.varied import (
    Mutated,
    check_mutated,
    check_varied,
    default_mutate,
    first_settings,
    parse_mutate,
    parse_sample,
)
from sfactory.run.reader import learning_settings

RESERVED = {
    "run.dir": "use --dir",
    "run.requeue": "the same command continues it",
    "stop.frames": "it ends by stop.env-steps",
    "stop.seconds": "it ends by stop.env-steps",
    "stop.target_return": "it ends by stop.env-steps",
}
"""Settings that a population sets itself -> what to do instead."""


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    members: int = 8
    period: int = 5_000_000
    """Env steps of a member between two publications; of agents, where an environment has several."""
    start: int = 20_000_000
    """Env steps of a member before which nothing is exchanged."""
    replace: float = 0.3
    """Share of the population that may be replaced in a round; as many are leaders."""
    gap: float = 0.0
    """Smallest difference of scores for which a member is replaced."""
    mutation_rate: float = 0.15
    """Probability that a setting is mutated when a member is replaced."""
    rounds: bool | None = None
    """Exchange when all members have ended a round; False: each when it has. None: rounds in lockstep only."""


@dataclass(frozen=True)
class Plan:
    """A checked population. `config` holds the settings that all members share."""

    folder: Path
    config: Config
    options: Options
    mutated: tuple[Mutated, ...]
    first: tuple[dict[str, Any], ...]
    """Settings of every member in its first round, of those that differ between members."""

    @property
    def seed(self) -> int:
        """Seed of all decisions; member m trains with seed + m."""
        return self.config.run.seed

    @property
    def members(self) -> range:
        return range(self.options.members)

    @property
    def in_rounds(self) -> bool:
        """Whether members wait for each other at the end of a round."""
        rounds = self.options.rounds
        return self.config.run.mode == "lockstep" if rounds is None else rounds

    @property
    def num_rounds(self) -> int:
        return math.ceil(self.config.stop.env_steps / self.options.period)

    def end_of(self, round: int) -> int:
        """Steps at which a round ends."""
        return min(round * self.options.period, self.config.stop.env_steps)

    def exchanges(self, round: int) -> bool:
        """Whether policies are exchanged after a round."""
        return self.options.start <= self.end_of(round) and round < self.num_rounds

    @property
    def exchanges_nothing(self) -> bool:
        """Whether the members end before any exchange."""
        return self.num_rounds < 2 or not self.exchanges(self.num_rounds - 1)

    def run_dir(self, member: int) -> Path:
        return self.folder / name_of(member)

    def config_of(self, member: int, round: int, settings: Mapping[str, Any], frame_skip: int, requeue: bool) -> Config:
        """Settings of a member in a round. settings: those that differ between members, of this round."""
        last = round == self.num_rounds
        own = {
            "run.dir": str(self.run_dir(member)),
            "run.seed": self.seed + member,
            "run.requeue": requeue,
            "log.quiet": True,
            "stop.frames": 0 if last else self.end_of(round) * frame_skip,
        }
        return with_settings(self.config, {**settings, **own})

    def identity(self) -> dict[str, Any]:
        """Everything that the course of the population depends on, as JSON can hold it."""
        o = self.options
        return {
            "members": o.members,
            "period": o.period,
            "start": o.start,
            "replace": o.replace,
            "gap": o.gap,
            "mutation_rate": o.mutation_rate,
            "rounds": self.in_rounds,
            "seed": self.seed,
            "env_steps": self.config.stop.env_steps,
            "mutate": [[flag_name(one.name), *one.values] for one in self.mutated],
            "settings": {flag_name(name): value for name, value in learning_settings(self.config).items()},
        }


def name_of(member: int) -> str:
    """Name of a member and of its folder."""
    return f"m{member}"


def make_plan(
    folder: Path,
    layers: Sequence[ConfigLayer],
    options: Options,
    sample: Sequence[str] = (),
    mutate: Sequence[str] = (),
) -> Plan:
    """Check everything that can be checked before a run is started. Raises SettingError, one line.

    layers: settings, flags last. sample, mutate: as in `sfactory.population.varied`.
    """
    config = parsing.build(*layers, {"log.quiet": RawValue("true")})
    for name in reserved_settings(layers, config, RESERVED):
        raise SettingError(f"{flag_name(name)}: a population sets it itself; {RESERVED[name]}")
    _check_options(options, config)
    sampled = parse_sample(sample)
    mutated = parse_mutate(mutate) or default_mutate(sampled, config)
    names = list(dict.fromkeys([*(one.name for one in sampled), *(one.name for one in mutated)]))
    values = [(one.name, value) for one in sampled for value in one.values]
    check_varied(names, config, values + [(one.name, value) for one in mutated for value in one.values])
    check_mutated(sampled, mutated, config)
    first = first_settings(sampled, names, config, options.members, config.run.seed)
    for settings in first:
        with_settings(config, settings)
    return Plan(folder, config, options, tuple(mutated), tuple(first))


def check_period(plan: Plan, agents: int) -> None:
    """SettingError if an update may train more env steps than a round has. agents: of an environment, at least 1."""
    for settings in plan.first:
        config, _ = rescale_batch(with_settings(plan.config, settings))
        if plan.options.period < (steps := config.batch_rows * agents):
            unit = "agent steps" if agents > 1 else "steps"
            raise SettingError(
                f"--period: must be at least the {steps:,} {unit} of an update, got {plan.options.period:,}"
            )


def _check_options(options: Options, config: Config) -> None:
    if options.members < 2:
        raise SettingError(f"--members: must be at least 2, got {options.members}")
    if not 0 < options.replace <= 0.5:
        raise SettingError(f"--replace: must be greater than 0 and at most 0.5, got {options.replace:g}")
    if options.mutation_rate > 1:
        raise SettingError(f"--mutation-rate: must be between 0 and 1, got {options.mutation_rate:g}")
    if not config.stop.env_steps:
        raise SettingError("stop.env-steps: must be greater than 0; a population ends by it")
    if config.eval.every > options.period:
        raise SettingError(f"eval.every: must be at most --period ({options.period:,}), got {config.eval.every:,}")
    if config.sampling.auto:
        raise SettingError("sampling.auto: members train side by side, so nothing can be measured; choose the numbers")
    if config.run.seed + options.members >= 2**63:
        raise SettingError(f"run.seed: member m gets seed + m, which must be below 2^63; got {config.run.seed}")
