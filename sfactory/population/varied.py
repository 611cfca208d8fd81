"""The settings that differ between the members of a population: first values, and how they are mutated. Pure functions.

    --sample optim.lr=1e-4,1e-3          each value for an equal number of members, dealt at random
    --sample optim.lr=1e-4..1e-2         one value from each of as many equal parts as there are members (logarithms,
                                         where the range is positive)
    --mutate optim.lr,loss.entropy-coef  times or divided by a factor of 1.1 to 1.5
    --mutate optim.schedule=linear,ess   another value of the list

Every random decision is a function of (seed, member, round) and what it is for, so it is the same when it is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sfactory.config import Config, SurrogateConfig, with_settings
from sfactory.config.algorithms import rules_of
from sfactory.config.bounds import Below, Between, bounds_of, check_bound
from sfactory.config.parsing import check_name, convert, field_type, flag_name
from sfactory.config.renamed import current_name
from sfactory.config.resume_rules import Rule, ends_at_env_steps, rule_of
from sfactory.config.short_forms import long_name
from sfactory.config.tables import table_of
from sfactory.errors import SettingError
from sfactory.population.jobs import split_values

LEAST, MOST = 1.1, 1.5
"""Factors by which a number is changed (Sample Factory)."""
DEFAULT_MUTATE = ("optim.lr", "loss.entropy_coef")
NEAR_ONE = 0.5
"""Shares above it (gamma, lambda, beta) are changed by their distance from 1: 0.99 times 1.2 is none."""
NOT_LEARNED = ("run.", "log.", "checkpoint.", "eval.", "env.step_timeout", "env.build_timeout", "env.fault_budget",
               "env.info_keys")  # fmt: skip
FIXED = "cannot change in the middle of a run, so no member could take it over; leave it out"
FIRST_VALUES, SOURCE, MUTATES, FACTOR = range(4)
"""What a random number is for."""


def uniform(seed: int, member: int, round: int, purpose: int, number: int = 0) -> float:
    """A number in [0, 1) that depends on its arguments alone. number: counts those for the same purpose."""
    bits = np.random.Philox(key=[seed, purpose], counter=[0, number, round, member]).random_raw()
    return float(int(bits) >> 11) / 2.0**53


@dataclass(frozen=True)
class Sampled:
    """First values of a setting: a list, or a range from `low` to `high`."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Mutated:
    """A setting that is mutated: by a factor, or with a list to another value of it."""

    name: str
    values: tuple[Any, ...] = ()


# -- reading the options -------------------------------------------------------------------------------------


def parse_sample(texts: Sequence[str]) -> list[Sampled]:
    """Parse `NAME=V1,V2` and `NAME=LOW..HIGH`. Raises SettingError."""
    found: list[Sampled] = []
    for text in texts:
        name, equals, values = _named(text)
        low, dots, high = values.partition("..")
        if not equals or not all(split_values(values)):
            raise SettingError(f"--sample {text}: expected NAME=V1,V2 or NAME=LOW..HIGH")
        if dots and _is_number(name):
            first, last = (float(convert(name, end)) for end in (low, high))
            if not first < last:
                raise SettingError(f"--sample {text}: the range is empty; write NAME=LOW..HIGH")
            found.append(Sampled(name, low=first, high=last))
        else:
            found.append(Sampled(name, _values(name, values)))
    return _each_once(found, "--sample")


def parse_mutate(texts: Sequence[str]) -> list[Mutated]:
    """Parse `NAME,NAME` and `NAME=V1,V2`. Raises SettingError."""
    found: list[Mutated] = []
    for text in texts:
        if "=" in text:
            name, _, values = _named(text)
            if len(set(split_values(values))) < 2 or not all(split_values(values)):
                raise SettingError(f"--mutate {text}: a list needs two values or more, as NAME=V1,V2")
            found.append(Mutated(name, _values(name, values)))
        else:
            found += [Mutated(_named(part)[0]) for part in text.split(",")]
    return _each_once(found, "--mutate")


def _named(text: str) -> tuple[str, str, str]:
    typed, equals, values = text.partition("=")
    given = long_name(typed.strip().lstrip("-").replace("-", "_"))
    check_name(given, typed)
    if table_of(given):
        raise SettingError(f"{typed} {FIXED}")
    return current_name(given), equals, values


def _values(name: str, text: str) -> tuple[Any, ...]:
    is_tuple = "tuple" in str(field_type(name))
    values = [convert(name, value.replace("+", ",") if is_tuple else value) for value in split_values(text)]
    section, _, key = name.partition(".")
    for value in values:
        try:
            check_bound(Config, section, key, value)
        except ValueError as error:
            raise SettingError(str(error)) from None
    return tuple(dict.fromkeys(values))


def _is_number(name: str) -> bool:
    return field_type(name) in (int, float)


def _each_once(found: list[Any], option: str) -> list[Any]:
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise SettingError(f"{option} {flag_name(name)} is given twice")
    return found


def check_varied(names: Sequence[str], config: Config, values: Sequence[tuple[str, Any]] = ()) -> None:
    """Raise SettingError if a setting cannot differ between members that take over each other's policies.

    values: (name, value) of those that come from a list.
    """
    lockstep, linear = config.run.mode == "lockstep", ends_at_env_steps(config)
    surrogates = [config.surrogate, *(_with_value(config.surrogate, *one) for one in values)]
    other_heads = any(one.has_median_head for one in surrogates)
    for name in names:
        flag = flag_name(name)
        if rule_of(flag, lockstep, linear, other_heads) is Rule.REFUSED:
            raise SettingError(f"{flag} {FIXED}")
        if name.startswith("stop."):
            raise SettingError(f"{flag} says when the population ends; it is the same for all members")
        if name.startswith(NOT_LEARNED):
            raise SettingError(f"{flag} does not change what is learned; leave it out")


def _with_value(surrogate: SurrogateConfig, name: str, value: Any) -> SurrogateConfig:
    section, _, key = name.partition(".")
    return replace(surrogate, **{key: value}) if section == "surrogate" else surrogate


def check_mutated(sampled: Sequence[Sampled], mutated: Sequence[Mutated], config: Config) -> None:
    """Raise SettingError for a mutation that could not change anything."""
    first = {one.name for one in sampled}
    for one in mutated:
        flag = flag_name(one.name)
        if not one.values and not _is_number(one.name):
            raise SettingError(f"--mutate {flag}: it is no number; give a list, as {flag}=V1,V2")
        if one.values or one.name in first:
            continue
        if not value_of(config, one.name):
            raise SettingError(f"--mutate {flag}: it is 0, and no factor changes that; give a list, as {flag}=0,0.01")
        if _is_share(one.name) and value_of(config, one.name) == 1:
            raise SettingError(
                f"--mutate {flag}: it is 1, and no factor changes its distance from 1; give a list, as {flag}=0.95,1"
            )


def default_mutate(sampled: Sequence[Sampled], config: Config) -> list[Mutated]:
    """What is mutated without --mutate: the sampled settings, else those of DEFAULT_MUTATE that are not 0."""
    if sampled:
        return [Mutated(one.name, one.values if not _is_number(one.name) else ()) for one in sampled]
    rules = rules_of(config)
    return [Mutated(name) for name in DEFAULT_MUTATE if value_of(config, name) and rules.uses(name)]


def value_of(config: Config, name: str) -> Any:
    """Value of a setting by its dotted name."""
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)


# -- first values --------------------------------------------------------------------------------------------


def first_settings(
    sampled: Sequence[Sampled], names: Sequence[str], config: Config, members: int, seed: int
) -> list[dict[str, Any]]:
    """Settings of every member in its first round: all `names`, sampled or as in `config`."""
    settings = [{name: value_of(config, name) for name in names} for _ in range(members)]
    for number, one in enumerate(sampled):
        order = sorted(range(members), key=lambda member: uniform(seed, member, 0, FIRST_VALUES, 2 * number))
        for place, member in enumerate(order):
            within = uniform(seed, member, 0, FIRST_VALUES, 2 * number + 1)
            settings[member][one.name] = _first_value(one, place, members, within)
    return settings


def _first_value(one: Sampled, place: int, members: int, within: float) -> Any:
    if one.values:
        return one.values[place % len(one.values)]
    value = _at(one, (place + within) / members)
    if field_type(one.name) is int:
        return round(value)
    part = _at(one, (place + 1) / members) - _at(one, place / members)
    for digits in (4, 6, 8):  # the fewest that stay in the range and tell the members apart: 0.99996 is not 1
        rounded = float(f"{value:.{digits}g}")
        if one.low <= rounded <= one.high and abs(rounded - value) <= part / 2:
            return rounded
    return value


def _at(one: Sampled, share: float) -> float:
    """The value at a share of a range, 0 to 1; of its logarithms, if it is positive."""
    if one.low > 0:
        return one.low * math.exp(share * math.log(one.high / one.low))
    return one.low + share * (one.high - one.low)


# -- mutation ------------------------------------------------------------------------------------------------


def mutate(
    settings: Mapping[str, Any],
    mutated: Sequence[Mutated],
    config: Config,
    rate: float,
    seed: int,
    member: int,
    round: int,
) -> dict[str, Any]:
    """The settings with each of `mutated` changed with probability `rate`, within its bounds and the rules of `config`.

    A change that the settings do not allow is made in the other direction, or not at all.
    """
    found = dict(settings)
    for number, one in enumerate(mutated):
        if uniform(seed, member, round, MUTATES, number) >= rate:
            continue
        chance = uniform(seed, member, round, FACTOR, number)
        for candidate in _candidates(found[one.name], one, chance):
            if _allowed(config, {**found, one.name: candidate}):
                found[one.name] = candidate
                break
    return found


def _candidates(value: Any, one: Mutated, chance: float) -> list[Any]:
    """New values of a setting, the preferred one first. chance: in [0, 1)."""
    if one.values:
        others = [other for other in one.values if other != value]
        first = int(chance * len(others))
        return [*others[first:], *others[:first]]
    up, share = chance < 0.5, (2 * chance) % 1.0
    factor = LEAST + share * (MOST - LEAST)
    factors = [factor, 1 / factor] if up else [1 / factor, factor]
    if field_type(one.name) is int:
        return [_another_whole(value, factor) for factor in factors]
    if _is_share(one.name) and value > NEAR_ONE:
        return [float(f"{1 - (1 - value) * factor:.6g}") for factor in factors]
    return [float(f"{value * factor:.4g}") for factor in factors]


def _another_whole(value: int, factor: float) -> int:
    changed = round(value * factor)
    return changed if changed != value else value + (1 if factor > 1 else -1)


def _is_share(name: str) -> bool:
    section, _, key = name.partition(".")
    bounds = bounds_of(Config)[section, key]
    return any(isinstance(bound, Between | Below) and (bound.low, bound.high) == (0, 1) for bound in bounds)


def _allowed(config: Config, settings: Mapping[str, Any]) -> bool:
    try:
        with_settings(config, settings)
    except ValueError:
        return False
    return True
