"""Expand seeds and a grid of settings into the runs of a sweep. Pure functions: nothing is read, written or started."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfactory.config import Config, parsing
from sfactory.config.flags import split_flags
from sfactory.config.parsing import ConfigLayer, RawValue
from sfactory.config.renamed import current_name, original_name
from sfactory.config.short_forms import long_name
from sfactory.config.values import same
from sfactory.errors import SettingError
from sfactory.run.folder import LONGEST_LABEL, path_component
from sfactory.run.reader import flat_settings, format_setting, learning_settings

RESERVED = {"run.seed": "--seeds", "run.dir": "--dir", "run.requeue": "the same command again"}
"""Settings that the sweep sets itself -> the option to use instead."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep. `name` is the name of its folder."""

    name: str
    run_dir: Path
    config: Config


def parse_seeds(text: str) -> list[int]:
    """Parse `0..4` (both ends included) or `1,5,7`. Raises SettingError."""
    try:
        first, dots, last = text.partition("..")
        seeds = list(range(int(first), int(last) + 1)) if dots else [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingError(f"seeds: {text!r} is neither a range such as 0..4 nor a list such as 1,5,7") from None
    if not seeds or min(seeds) < 0:
        raise SettingError(f"seeds: {text!r} contains no seed or a negative one; expected FIRST..LAST or a list")
    return list(dict.fromkeys(seeds))


def grid_cells(grid: Sequence[str]) -> list[ConfigLayer]:
    """Return all combinations of `NAME=V1,V2` as layers of settings; one empty layer without a grid.

    A setting with several numbers joins them by `+`: `model.hidden=64,128+32`. Raises SettingError.
    """
    axes: list[list[ConfigLayer]] = []
    for text in grid:
        typed, equals, values = text.partition("=")
        name = long_name(typed.lstrip("-").replace("-", "_"))
        if not equals or not all(split_values(values)):
            raise SettingError(f"grid: {text!r} is not NAME=V1,V2")
        if name in RESERVED:
            raise SettingError(f"grid: {parsing.flag_name(name)} cannot be in the grid; use {RESERVED[name]}")
        if any(current_name(name) in map(current_name, axis[0]) for axis in axes):
            raise SettingError(f"grid: {parsing.flag_name(name)} is given twice; write all its values in one --grid")
        is_tuple = name in parsing.field_types() and "tuple" in str(parsing.field_types()[name])
        choices = [value.replace("+", ",") if is_tuple else value for value in split_values(values)]
        axes.append([split_flags([f"--{typed.lstrip('-')}={v}"], {})[0] for v in dict.fromkeys(choices)])
    return [{name: raw for layer in cell for name, raw in layer.items()} for cell in itertools.product(*axes)]


def split_values(values: str) -> list[str]:
    """Separate values at commas, except in values that begin with a bracket or a quote."""
    parts, depth, quote = [""], 0, ""
    for character in values:
        opens = depth > 0 or not parts[-1]
        if quote or (opens and character in "'\""):
            quote = "" if character == quote else quote or character
        elif opens and character in "([{":
            depth += 1
        elif depth and character in ")]}":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def plan_jobs(
    target: str, base: Sequence[ConfigLayer], grid: Sequence[str], seeds: Sequence[int], folder: Path | None
) -> tuple[Path, list[Job]]:
    """Return the sweep's folder and its jobs: all cells of one seed before the next seed.

    base: layers of settings, flags last. folder: None derives it from the target and the settings that stay fixed, so
    that the same command finds its folder again. Raises SettingError if any of the configurations is invalid.
    """
    flags, cells = base[-1], grid_cells(grid)
    for name in reserved_settings(base, parsing.build(*base, cells[0]), RESERVED):
        raise SettingError(f"{parsing.flag_name(name)}: a sweep sets it itself; use {RESERVED[name]}")
    fixed = set(map(current_name, flags))
    for name in cells[0]:
        if current_name(name) in fixed:
            raise SettingError(f"{parsing.flag_name(name)} is in the grid and also given as a flag; remove one of them")
    if folder is None:
        folder = default_folder(target, parsing.build(*base, cells[0]), varied=cells[0])
    jobs: dict[str, Job] = {}
    for seed, cell in itertools.product(seeds, cells):
        own = {"run.seed": RawValue(str(seed)), "log.quiet": RawValue("true")}
        values = flat_settings(parsing.build(*base, cell, own))
        parts = [format_setting(key, values.get(current_name(key), raw.value)) for key, raw in cell.items()]
        for name in _names("_".join([*map(path_component, parts), f"s{seed}"])):
            config = parsing.build(*base, cell, {"run.dir": RawValue(str(folder / name)), **own})
            if jobs.setdefault(name, Job(name, folder / name, config)).config == config:
                break  # else another cell has this name: its values differ in characters that names do not show
    return folder, list(jobs.values())


def reserved_settings(layers: Sequence[ConfigLayer], config: Config, reserved: Collection[str]) -> list[str]:
    """The reserved settings that somebody has set: any flag, and values of a file that differ from the default.

    layers: settings, flags last; config: made of them. A file of `--print-config` has every setting.
    """
    flags = set(map(current_name, layers[-1]))
    values, defaults = flat_settings(config), flat_settings(Config())
    return [name for name in reserved if name in flags or not same(values[name], defaults[name])]


def _names(name: str) -> Iterator[str]:
    """A name, then the same with a number."""
    return itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))


def default_folder(target: str, config: Config, varied: ConfigLayer) -> Path:
    """Return runs/TARGET_sweep_HASH, where the hash covers the settings outside the grid that affect learning."""
    names = set(map(current_name, varied))
    # Original names: the folder of a sweep that an older version started is found again.
    fixed = {original_name(name): value for name, value in learning_settings(config).items() if name not in names}
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return Path("runs") / f"{path_component(target or config.env.name)[:LONGEST_LABEL]}_sweep_{digest}"
