"""Settings whose keys are free: the arguments of the environment, and those of its wrappers.

Tables of several sources are merged key by key. Keys that are names of arguments may be written with dashes, as flags
are: those of the first level in `env.settings`, of the second in `env.wrapper_settings`, whose first level names the
wrapper. Keys inside a value are taken as they are. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfactory.config.values import from_text, plain_table
from sfactory.errors import SettingError

SETTINGS = "env.settings"
WRAPPER_SETTINGS = "env.wrapper_settings"
PLACEHOLDERS = {SETTINGS: "env.settings.KEY", WRAPPER_SETTINGS: "env.wrapper-settings.NAME.KEY"}
"""Dotted name of a free table -> one value of it, as it is typed."""


def table_of(name: str) -> str:
    """The free table that a dotted name belongs to, as `env.settings`; empty for other settings."""
    return next((table for table in PLACEHOLDERS if name == table or name.startswith(f"{table}.")), "")


def key_path(name: str) -> tuple[str, ...]:
    """Keys of a dotted name below its free table: `env.settings.config.vehicles` -> (config, vehicles).

    The first key of wrapper settings is the name of a wrapper, which may have dots before a colon: my.module:wrap.
    """
    table = table_of(name)
    rest = name.removeprefix(table).removeprefix(".")
    if not rest:
        return ()
    module, colon, _ = rest.partition(":")
    if table == WRAPPER_SETTINGS and colon:
        first, *more = rest.removeprefix(f"{module}:").split(".")
        return (f"{module}:{first}", *more)
    return tuple(rest.split("."))


def typed_name(typed: str) -> str:
    """A name as it is typed with underscores instead of dashes, but for the name of a wrapper."""
    name = typed.replace("-", "_")
    path = key_path(name)
    if table_of(name) != WRAPPER_SETTINGS or not path:
        return name
    start = len(WRAPPER_SETTINGS) + 1
    end = start + len(path[0])
    return name[:start] + typed[start:end] + name[end:]


def as_table(table: str, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """One raw value of a free table as nested plain values. SettingError names it if it cannot be stored."""
    place = table.replace("_", "-")
    if not path:
        value = _whole_table(place, table, value)
    for key in reversed(path):
        value = {key: value}
    found = plain_table(value, place)
    if table == SETTINGS:
        return _with_underscores(found, place)
    for name, arguments in found.items():
        if not isinstance(arguments, dict):
            raise SettingError(f"{place}.{name}: {arguments!r} is not a table; write --{PLACEHOLDERS[table]} value")
        found[name] = _with_underscores(arguments, f"{place}.{name}")
    return found


def _whole_table(place: str, table: str, value: Any) -> Mapping[Any, Any]:
    """A complete table, also as text."""
    read = from_text(value) if isinstance(value, str) else value
    if isinstance(read, Mapping):
        return read
    hint = f"; write --{PLACEHOLDERS[table]} value" if isinstance(value, str) else ""
    raise SettingError(f"{place}: {value!r} is not a table{hint}")


def _with_underscores(arguments: dict[str, Any], place: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in arguments.items():
        name = key.replace("-", "_")
        if name in found:
            raise SettingError(f"{place}: {name} is given twice, with a dash and with an underscore; leave one out")
        found[name] = value
    return found


def merge(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables; where both have a key, nested tables are merged, other values are those of `strong`."""
    found = dict(weak)
    for key, value in strong.items():
        weaker = found.get(key)
        found[key] = merge(weaker, value) if isinstance(weaker, dict) and isinstance(value, dict) else value
    return found
