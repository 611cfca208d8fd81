"""From layers of raw values to one checked `Config`.

Every source of settings (preset, file, flags, Python) becomes a `ConfigLayer`: dotted name -> `RawValue`. `build`
merges the layers, converts each value to the type of its field, and raises `SettingError` with one line that names the
setting and the file it came from. Text is converted as people write it (`10M`, `2.5e-4`, `yes`, `64,32`); the types
are then checked by msgspec, which imports in 15 ms (pydantic: 35 ms) and does not convert silently.
"""

from __future__ import annotations

import datetime
import functools
import math
import numbers
import os
import re
import typing
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from sfactory.config import Config, known_names
from sfactory.config.algorithms import ALGORITHMS
from sfactory.config.bounds import LARGEST, AnyNumber, check_bound
from sfactory.config.cross_checks import NoEffect, ReplaceableValue
from sfactory.config.renamed import RENAMED, current_name, report_old_names
from sfactory.config.short_forms import SHORT_FORMS
from sfactory.config.tables import SETTINGS, as_table, key_path, merge, table_of
from sfactory.config.values import SWITCHES, UNITS, as_text, is_none
from sfactory.errors import SettingError, SettingNote, did_you_mean

PATHS = ("run.dir", "run.init_from", "env.name")
"""Settings that name a folder or file: `~` is the home folder."""
LISTS = ("env.name", "env.wrappers", "env.drop", "env.info_keys", "selfplay.opponents", "log.wandb_tags")
"""Texts that are several names with commas; a list of names in Python or a file is the same."""
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][+-]?\d+)?)([kKMGB]?)")
WORDS = {**SWITCHES, "1": True, "0": False}
TEXTS = (str, bool, numbers.Number, datetime.date, datetime.time)
"""What counts as text where text is expected: a file may have `name = 7`, or a date."""
ARGUMENTS = ("callbacks", "wrappers", "check", "allow", "trust")
"""Arguments of functions in Python that stand beside the sections."""
LARGEST_EXPONENT = 300
LONGEST_SHOWN = 80


@dataclass(frozen=True)
class RawValue:
    """A value as it was given, and the file it came from; empty for flags and Python.

    path: keys below a free table (`sfactory.config.tables`), where dots in the name do not separate them.
    preset: whether it is of a preset, so that it gives way to an algorithm that the preset was not made for.
    recorded: whether it is of a run that was started, so that a rule which refuses it in a new run replaces it here.
    """

    value: Any
    origin: str = ""
    path: tuple[str, ...] = ()
    preset: bool = False
    recorded: bool = False


ConfigLayer = dict[str, RawValue]
"""Dotted field name with underscores (`optim.lr`, `env.settings.KEY`) -> value."""


def table_layer(table: str, values: Mapping[Any, Any], origin: str = "") -> ConfigLayer:
    """A layer of one raw value per key of a free table, from a file or Python: dots in a key are part of it."""
    layer: ConfigLayer = {}
    for key, value in values.items():
        argument = str(key).replace("-", "_") if table == SETTINGS else key
        name = f"{table}.{argument}"
        if name in layer:
            twice = f"{flag_name(table)}.{argument} is given twice, with a dash and with an underscore; leave one out"
            raise _with_origin(origin, SettingError(twice))
        layer[name] = RawValue(value, origin, (key,))
    return layer


# -- names ---------------------------------------------------------------------------------------------------


@functools.cache
def field_types() -> dict[str, Any]:
    """Dotted name -> type of every setting, without its bounds."""
    types = {}
    for section, cls in typing.get_type_hints(Config).items():
        hints = typing.get_type_hints(cls)
        types.update({f"{section}.{f.name}": hints[f.name] for f in fields(cls)})
    return types


def field_type(name: str) -> Any:
    """Type of a setting under its current or an old name; None if there is no such setting."""
    return field_types().get(current_name(name))


def flag_name(name: str) -> str:
    """A setting's name as it is typed: dashes instead of underscores."""
    return name.replace("_", "-")


def check_name(name: str, typed: str, options: Iterable[str] = ()) -> None:
    """Raise SettingError if there is no such setting: with its name here, if other programs have it, or a near one."""
    if field_type(name) is not None or table_of(name):
        return
    if answer := known_names.answer(name):
        raise SettingError(f"{typed}: no such setting; {answer}")
    section, _, last = name.rpartition(".")
    if section and SHORT_FORMS.get(last, "").startswith(f"{section}."):  # run.name, stop.steps
        raise SettingError(f"{typed}: no such setting; did you mean {flag_name(SHORT_FORMS[last])}, or --{last}?")
    if name in typing.get_type_hints(Config):
        listed = ", ".join(flag_name(one) for one in field_types() if one.startswith(f"{name}."))
        raise SettingError(f"{typed}: a section, not a setting; its settings are {listed}")
    phase = f"{section}." if section in known_names.OWN_PHASE else ""  # run.seed is not that of evaluations
    known = [
        *(flag_name(one) for one in field_types() if one.startswith(phase)),
        *(option.lstrip("-") for option in options),
    ]
    hint = did_you_mean(flag_name(name), known, 0.8, 0.85)  # a wrong suggestion is worse than none
    if not hint and name.startswith("learning."):  # near an old name: suggest the current one
        old = did_you_mean(flag_name(name), map(flag_name, RENAMED)).removeprefix("; did you mean ").removesuffix("?")
        hint = f"; did you mean {flag_name(current_name(old.replace('-', '_')))}?" if old else ""
    raise SettingError(f"{typed}: no such setting{hint}")


def without_section(name: str, value: Any, python: bool = False) -> SettingError:
    """The error for a setting that stands where sections do: at the top of a file, or among the keywords in Python."""
    setting, answer = known_names.setting_of(name), known_names.answer(name)
    if setting := setting or ("" if answer and "." not in name else _field_named(name)):
        note = known_names.note_of(name)
        section, _, key = setting.replace("-", "_").partition(".")
        given = "..." if note else shown(value)  # where meaning or unit differ, so does the value
        where = f"{section}={{{key!r}: {given}}}" if python else f"[{section}] with {key} below it"
        here = f"here {setting} ({note})" if note else f"here {setting}"
        return SettingError(f"{name}: settings belong in sections; {here}: write {where}")
    if answer:
        return SettingError(f"{name}: settings belong in sections; {answer}")
    if python:
        if hint := did_you_mean(name, ARGUMENTS, 0.85, 0.85):
            return SettingError(f"{name}: no such argument{hint}")
        return SettingError(f"{name}: expected a dict of settings, as optim={{'lr': 1e-3}}, got {shown(value)}")
    return SettingError(f"{name}: settings belong in sections; write [section] above it")


def _field_named(name: str) -> str:
    """The setting that a name is the last part of, or the whole, as it is typed; empty if it is none or several."""
    name = name.replace("-", "_")
    found = [setting for setting in field_types() if name in (setting, setting.partition(".")[2])]
    return flag_name(found[0]) if len(found) == 1 else ""


# -- building a configuration --------------------------------------------------------------------------------


def build(*layers: ConfigLayer) -> Config:
    """Merge the layers, weakest first, and check everything.

    Old names are accepted, with one line on stderr. Where `algorithm.name` is not that of the preset, the values of the
    preset that the algorithm does not use are left out, and its own come before those it has values for. So are values
    of a preset that have no effect beside what was given. Recorded values that a new run could not have are replaced by
    those with the same meaning, with one line each. Raises SettingError with one line.
    """
    merged = _for_algorithm(_merge_layers(layers))
    report_old_names(one.given for one in merged if current_name(one.given) != one.given)
    sections: dict[str, dict[str, Any]] = {}
    for one in merged:
        section, _, key = one.name.partition(".")
        values = sections.setdefault(section, {})
        try:
            if table_of(one.name):
                values[key] = merge(values.get(key, {}), as_table(one.name, one.path, one.raw.value))
            else:
                values[key] = convert(one.given, one.raw.value)
                check_bound(Config, section, key, values[key])
        except ValueError as error:
            raise _with_origin(one.raw.origin, error) from None
    classes = typing.get_type_hints(Config)
    recorded = {one.name: one.raw.origin for one in merged if one.raw.recorded}
    of_preset = {one.name for one in merged if one.raw.preset}
    while True:
        try:
            return Config(**{section: classes[section](**values) for section, values in sections.items()})
        except ReplaceableValue as error:
            section, _, key = error.setting.partition(".")
            if error.setting in recorded:
                _report_replaced(error, recorded.pop(error.setting))  # each once: the loop ends
            elif error.setting in of_preset and isinstance(error, NoEffect):
                of_preset.remove(error.setting)
            else:
                raise SettingError(str(error)) from None
            sections[section][key] = error.other
        except ValueError as error:
            raise SettingError(str(error)) from None


_reported: set[str] = set()


def _report_replaced(error: ReplaceableValue, origin: str) -> None:
    """Warn (`SettingNote`, one line) about a recorded value that is replaced; once per process, as it is read often."""
    if (line := f"{origin}: {error.fact}; read as {as_text(error.other)}") not in _reported:
        _reported.add(line)
        warnings.warn(line, SettingNote, stacklevel=3)


class _Entry(NamedTuple):
    """One raw value: the setting's current name, or its free table and the keys below it; the name as given."""

    name: str
    path: tuple[str, ...]
    given: str
    raw: RawValue


def _merge_layers(layers: Sequence[ConfigLayer]) -> list[_Entry]:
    """The values that count, weakest first: the last one of every setting, and tables that are merged with others."""
    kept: list[_Entry] = []
    for layer in layers:
        for name, (given, raw) in _with_current_names(layer).items():
            table = table_of(name)
            entry = _Entry(table or name, raw.path or key_path(name) if table else (), given, raw)
            if not table or not isinstance(raw.value, Mapping) or is_none(raw.value):
                kept = [one for one in kept if (one.name, one.path) != (entry.name, entry.path)]
            kept.append(entry)
    return kept


def _for_algorithm(entries: Sequence[_Entry]) -> list[_Entry]:
    """The values that count where another algorithm is selected than that of the preset."""
    chosen = next((one for one in reversed(entries) if one.name == "algorithm.name"), None)
    if chosen is None or chosen.raw.preset:
        return list(entries)
    rules = ALGORITHMS.get(chosen.raw.value)
    if rules is None:  # an error, reported with the others
        return list(entries)
    kept = [one for one in entries if not one.raw.preset or (rules.uses(one.name) and one.name not in rules.values)]
    given = {one.name for one in kept}
    own = [_Entry(name, (), name, RawValue(value)) for name, value in rules.values.items() if name not in given]
    return own + kept


def _with_current_names(layer: ConfigLayer) -> dict[str, tuple[str, RawValue]]:
    """Current name -> (name as given, value). SettingError for an unknown name, or two names of one setting."""
    found: dict[str, tuple[str, RawValue]] = {}
    for given, raw in layer.items():
        name = current_name(given)
        try:
            check_name(given, flag_name(given))
            if name in found:
                names = f"{flag_name(found[name][0])} and {flag_name(given)}"
                raise SettingError(f"{names} are the same setting; leave one out")
        except SettingError as error:
            raise _with_origin(raw.origin, error) from None
        found[name] = given, raw
    return found


def _with_origin(origin: str, error: Exception) -> SettingError:
    return SettingError(f"{origin}: {error}" if origin else str(error))


def convert(name: str, value: Any) -> Any:
    """A raw value as the type of its field. SettingError names the setting, the value and what was expected."""
    import msgspec

    kind = field_type(name)
    if table := table_of(name):
        return as_table(table, (), value)
    try:
        if current_name(name) in LISTS and isinstance(value, list | tuple):
            value = _joined(value)
        if name in PATHS and isinstance(value, str | os.PathLike):
            names = os.fspath(value).split(",") if name == "env.name" else [os.fspath(value)]
            value = ",".join(map(os.path.expanduser, names))
        plain = _from_text(value, kind) if isinstance(value, str) else _from_python(value, kind)
        return msgspec.convert(plain, kind)
    except SettingError as error:
        raise SettingError(f"{flag_name(name)}: {error}") from None
    except msgspec.ValidationError:
        raise SettingError(f"{flag_name(name)}: {shown(value)} is not {_expected(kind)}") from None


def _joined(names: Sequence[Any]) -> str:
    """A list of names as one text with commas."""
    texts = [os.fspath(name) if isinstance(name, os.PathLike) else name for name in names]
    for text in texts:
        if not isinstance(text, str):
            raise SettingError(f"{shown(text)} is not text")
        if "," in text:
            raise SettingError(f"{text!r} has a comma, which separates names")
    return ",".join(texts)


def _from_text(text: str, kind: Any) -> Any:
    """Text as a person writes it, as the nearest value of the type."""
    if kind is bool:
        return _switch(text)
    if kind is int:
        return _whole(text)
    if kind is float or (kind == (float | None) and text.lower() != "none"):
        return float(number(text))
    if kind == (float | None):
        return None
    origin = typing.get_origin(kind)
    if origin is Literal:
        return _choice(text, typing.get_args(kind))
    if origin is tuple:
        return [_whole(part) for part in re.split(r"[,\s]+", text.strip(", "))]
    return text


def _from_python(value: Any, kind: Any) -> Any:
    """A value from TOML or Python; numbers of every library become int and float. Wrong types are left as they are."""
    origin = typing.get_origin(kind)
    if isinstance(value, Mapping):
        raise SettingError("expected one value, got a table")
    if isinstance(value, list | tuple):
        if origin is not tuple:
            raise SettingError(f"expected one value, got a list of {len(value)}")
        return [_whole(item) if isinstance(item, str) else _from_python(item, int) for item in value]
    if kind is bool:
        return _switch(value)
    if origin is Literal:
        return _choice(value, typing.get_args(kind))
    if kind is str:
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if not isinstance(value, TEXTS):
            raise SettingError(f"{shown(value)} is not text")
        return str(value)
    if origin is tuple:
        return [_from_python(value, int)]
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) > LARGEST:
            raise SettingError(f"a whole number must be below {LARGEST:.0e}")  # it may have a million digits
        if not math.isfinite(value):
            return number(str(value))  # an error
        return _whole(str(value)) if kind is int else float(value)
    return value


def shown(value: Any) -> str:
    """A value in an error message: what is longer than a line is cut."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _expected(kind: Any) -> str:
    return {int: "a whole number", bool: "true or false", str: "text"}.get(kind, "a number")


def _switch(value: Any) -> bool:
    word = WORDS.get(str(value).lower())
    if word is None:
        raise SettingError(f"{shown(value)} is neither true nor false")
    return word


def _choice(value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        raise SettingError(f"{shown(value)} is not one of {', '.join(choices)}{hint}")
    return str(value)


def number(text: str) -> Decimal:
    """`10M`, `50k`, `2.5e-4`, `1_000` exactly; SettingError otherwise."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise SettingError(f"{text!r} is not a number; write for example 2.5e-4, 2000, 50k or 10M")
    try:
        exact = Decimal(match[1].replace("_", ""))
    except ArithmeticError:  # the exponent has more digits than a Decimal can hold
        raise SettingError(f"{text[:40]!r} is too large or too small a number") from None
    if exact.adjusted() > LARGEST_EXPONENT:  # 1e999999999 as a whole number would fill the memory
        raise SettingError(f"{text[:40]!r} is too large")
    return exact * UNITS.get(match[2], 1)


def whole(text: str, name: str) -> int:
    """A whole number of a command's own option; SettingError names the option."""
    try:
        return _whole(text)
    except SettingError as error:
        raise SettingError(f"{name}: {error}") from None


def _whole(text: str) -> int:
    try:
        exact = number(text)
    except SettingError:
        raise SettingError(f"{text!r} is not a whole number; write for example 2000, 50k or 10M") from None
    if abs(exact) > LARGEST:  # the exact number may have a million digits
        raise SettingError(f"{text[:40]} is too large; it must be {AnyNumber().text}")
    if exact != int(exact):
        raise SettingError(f"{text} is not a whole number")
    return int(exact)
