"""Settings from Python: values, classes and functions, as the names and layers of the command line."""

from __future__ import annotations

import numbers
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sfactory import pickled
from sfactory.config import Config, parsing
from sfactory.config.tables import PLACEHOLDERS
from sfactory.envs.registered import RegisteredEnv
from sfactory.errors import EnvError, OnlyRegisteredHere, SettingError

Code = Callable[..., Any]
"""A class or function of the user's own."""
CODE_SETTINGS = ("env.name", "env.wrappers", "model.encoder", "model.network")
"""Settings that take `module:Class`, and from Python the class or function itself."""


def layer_of(sections: Mapping[str, Mapping[str, Any]]) -> parsing.ConfigLayer:
    """Nested values as a layer of settings. None is the default, as in a file without the key."""
    layer: parsing.ConfigLayer = {}
    for section, values in sections.items():
        if not isinstance(values, Mapping):
            raise parsing.without_section(section, values, python=True)
        for key, value in values.items():
            name = f"{section}.{key}".replace("-", "_")  # as messages and files write it: env-steps
            if name in layer:
                raise SettingError(f"{name} is given twice, with a dash and with an underscore; leave one out")
            if name in PLACEHOLDERS and isinstance(value, Mapping):
                layer.update(parsing.table_layer(name, value))
            elif value is not None:
                value = _python_numbers(value)
                layer[name] = parsing.RawValue(_named(value, name) if name in CODE_SETTINGS else value)
    return layer


def _python_numbers(value: Any) -> Any:
    """Arrays of NumPy and torch as their numbers; tuples and ranges as lists."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple | range) else value


def whole_numbers(**given: Any) -> dict[str, int]:
    """Arguments that are whole numbers, of NumPy too, as int. SettingError names another one."""
    for name, value in given.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool):
            raise SettingError(f"{name}: {parsing.shown(value)} is not a whole number")
    return {name: int(value) for name, value in given.items()}


def checked_seed(seed: Any) -> int:
    """A seed as int. SettingError for one that is no whole number or negative."""
    if (found := whole_numbers(seed=seed)["seed"]) < 0:
        raise SettingError(f"seed must be >= 0, got {found}")
    return found


def switches(**given: Any) -> dict[str, bool]:
    """Arguments that are true or false, of NumPy too, as bool. SettingError names another one, as "no"."""
    for name, value in given.items():
        if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
            raise SettingError(f"{name}: expected True or False, got {parsing.shown(value)}")
    return {name: bool(value) for name, value in given.items()}


def _named(value: Any, setting: str) -> Any:
    """A value, or several with commas, in which classes and functions are replaced by their names."""
    if isinstance(value, list) and not _is_with_settings(value):
        return ",".join(os.fspath(_name(one, setting)) for one in value)
    return _name(value, setting)


def _name(value: Any, setting: str) -> Any:
    """The name of a class or function; names are returned as they are. SettingError for what is neither."""
    if isinstance(value, str | os.PathLike):
        return value
    if not callable(value) or _is_network(value):
        raise SettingError(f"{setting}: {_no_code(value)}")
    wrappers: Any = sys.modules.get("gymnasium.wrappers")
    name = getattr(value, "__name__", "")
    if getattr(wrappers, name, None) is value:  # known by its name alone
        return name
    return pickled.name_of(value, setting)


def _is_with_settings(value: Any) -> bool:
    """Whether a value is a class or function with a dict, as other programs take a wrapper with its settings."""
    return isinstance(value, list | tuple) and len(value) == 2 and callable(value[0]) and isinstance(value[1], Mapping)


def _is_network(value: Any) -> bool:
    """Whether a value is a network that exists already; it can be called, but makes none."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _no_code(value: Any) -> str:
    """Why a value is neither a name nor code, and what to pass instead."""
    if _is_with_settings(value):
        name = pickled.word_of(value[0])
        settings = "".join(f", {key}={parsing.shown(one)}" for key, one in value[1].items())
        return f"{name} with its settings is not one value; pass functools.partial({name}{settings})"
    if isinstance(value, Mapping | list | tuple | bytes | bool | int | float | None):
        return f"{parsing.shown(value)} is no name, class or function"
    return (
        f"expected a name, a class or a function, got an object of the class {type(value).__name__}; every process "
        "makes its own: pass the class, or a function that returns the object"
    )


def target_name(target: str | Code) -> str:
    """A target as the command line names it. SettingError for what names no environment."""
    if isinstance(target, str):
        return target
    if callable(target):
        return pickled.name_of(target, "target")
    if (gymnasium := sys.modules.get("gymnasium")) and isinstance(target, gymnasium.Env):
        raise SettingError(
            f"target: {type(target).__name__} is an environment, and every process builds its own; pass the class, or "
            "a function that returns an environment, for example lambda: gymnasium.make(ID)"
        )
    raise SettingError(
        f"target: expected a preset, FAMILY/ID, a Config, or a class or function that returns an environment, got "
        f"{type(target).__name__}"
    )


def label_of(target: str | Config | Code) -> str:
    """Name of a new run's folder; empty: that of the environment."""
    if isinstance(target, str):
        return target
    return "" if isinstance(target, Config) else pickled.word_of(target)


def with_registered(config: Config, error: OnlyRegisteredHere) -> Config:
    """The configuration with the id of an environment, that only this process knows, replaced by its code."""
    spec = sys.modules["gymnasium"].registry[error.task.partition("/")[2]]
    try:
        name = pickled.name_of(RegisteredEnv(spec), error.task)
    except SettingError as problem:
        raise EnvError(str(error)) from problem
    tasks = [name if task == error.task else task for task in config.env.tasks]
    return replace(config, env=replace(config.env, name=",".join(tasks)))
