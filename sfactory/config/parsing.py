"""From layers of values to one checked `Config`: what a value may look like, and how a mistake is answered.

Every source becomes a `ConfigLayer`: dotted name -> the text a person could have typed. Layers are merged and given to
tyro as one command line, so there is one validator and one style of error, whichever source a value came from.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import json
import os
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal

from sfactory.config import Config
from sfactory.errors import SettingError

SETTINGS = "env.settings"  # the one table with names of its own
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][+-]?\d+)?)([kKMGB]?)")
WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@dataclass(frozen=True)
class RawValue:
    """One value as it was given, and where: empty for the command line, else a file's name."""

    value: Any
    origin: str = ""


ConfigLayer = dict[str, RawValue]
"""Dotted field name with underscores (`optim.lr`, `env.settings.KEY`) -> value."""


@functools.cache
def field_types() -> dict[str, Any]:
    """Dotted name -> type of every setting."""
    types = {}
    for section, cls in typing.get_type_hints(Config).items():
        hints = typing.get_type_hints(cls)
        types.update({f"{section}.{f.name}": hints[f.name] for f in fields(cls)})
    return types


def shown(name: str) -> str:
    """A setting's name as it is typed: dashes for underscores."""
    return name.replace("_", "-")


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is near. The last part is enough: lr -> optim.lr."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if not near:
        last = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
        near = [last[hit] for hit in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, 1, 0.75)]
    return f"; did you mean {near[0]}?" if near else ""


def number(text: str) -> Decimal:
    """`10M`, `50k`, `2.5e-4`, `1_000` exactly; SettingError otherwise."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise SettingError(f"{text!r} is not a number; write for example 2.5e-4, 2000, 50k or 10M")
    return Decimal(match[1].replace("_", "")) * _UNITS[match[2]]


# -- validation ----------------------------------------------------------------------------------------------


def build(*layers: ConfigLayer) -> Config:
    """Merge the layers, weakest first, and check everything. Raises SettingError with one line."""
    merged: ConfigLayer = {}
    for layer in layers:
        for name, given in layer.items():
            try:
                check_name(name, shown(name))
            except SettingError as error:
                raise _from(given.origin, error) from None
        merged.update(layer)
    argv, settings = [], {}
    for name, given in merged.items():
        try:
            if name.startswith(SETTINGS + "."):
                settings[name.removeprefix(SETTINGS + ".")] = given.value
            else:
                argv += _argument(name, given.value)
        except SettingError as error:
            raise _from(given.origin, error) from None
    if settings:
        argv.append(f"--{SETTINGS}={json.dumps(settings, default=str)}")
    return _tyro(argv, merged)


def check_name(name: str, typed: str, options: Iterable[str] = ()) -> None:
    """SettingError if there is no such setting, with the nearest that there is."""
    if name not in field_types() and not name.startswith(SETTINGS + "."):
        known = [*map(shown, field_types()), *(option.lstrip("-") for option in options)]
        raise SettingError(f"{typed}: no such setting{suggestion(shown(name), known)}")


def _from(origin: str, error: Exception) -> SettingError:
    return SettingError(f"{origin}: {error}" if origin else str(error))


def _argument(name: str, value: Any) -> list[str]:
    """One setting as tyro wants to see it. With `=`, a value that begins with a dash is no option."""
    kind = field_types()[name]
    if isinstance(value, dict):
        raise SettingError(f"{shown(name)}: expected one value, got a table")
    if kind is bool:
        word = WORDS.get(str(value).lower())
        if word is None:
            raise SettingError(f"{shown(name)}: {value!r} is neither true nor false")
        section, key = shown(name).split(".")
        return [f"--{section}.{'' if word else 'no-'}{key}"]
    if typing.get_origin(kind) is tuple:
        return [f"--{shown(name)}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    if isinstance(value, list):
        raise SettingError(f"{shown(name)}: expected one value, got {len(value)}")
    return [f"--{shown(name)}={value}"]


def _tyro(argv: list[str], merged: ConfigLayer) -> Config:
    """Let tyro parse; its box becomes one line, which names the file a bad value came from."""
    import tyro

    box, out = io.StringIO(), io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"  # tyro wraps its box at the terminal's width; a line must stay one
    try:
        with contextlib.redirect_stderr(box), contextlib.redirect_stdout(out):
            return tyro.cli(Config, args=argv, registry=_registry())
    except SystemExit:
        name, line = _unboxed(box.getvalue() + out.getvalue())
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    raise _from(merged[name].origin if name in merged else "", SettingError(line))


def _unboxed(box: str) -> tuple[str, str]:
    """(field or empty, one line) from tyro's message: its frame, its title and its help are left out."""
    rows = [row.strip("│| \t") for row in box.splitlines()]
    for row in rows:
        match = re.fullmatch(r"Error parsing (--)?([\w.-]+): (.*)", row)
        if match:
            field = match[2] if match[1] else ""  # a whole dataclass: a check across fields, which names them
            return field.replace("-", "_"), f"{field}: {match[3]}" if field else match[3]
    return "", " ".join(row for row in rows if row.strip("╭╮╰╯─-+"))


@functools.cache
def _registry() -> Any:
    """Types tyro does not take as people write them: 10M, none, a choice with a suggestion, a table."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    def spec(metavar: str, parse: Any, kind: Any) -> Any:
        many = kind is tuple
        return PrimitiveConstructorSpec(
            nargs="*" if many else 1,
            metavar=metavar,
            instance_from_str=lambda args: tuple(map(parse, args)) if many else parse(args[0]),
            is_instance=lambda value: kind is None or isinstance(value, kind),
            str_from_instance=lambda value: [str(v) for v in value] if many else [str(value)],
        )

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: Any) -> Any:
        kind = info.type
        if kind is int:
            return spec("INT", _whole, int)
        if kind is float:
            return spec("FLOAT", lambda text: float(number(text)), (int, float))
        if kind == (float | None):
            return spec("FLOAT|none", lambda t: None if t.lower() == "none" else float(number(t)), None)
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            return spec("{" + ",".join(choices) + "}", lambda text: _choice(text, choices), str)
        if typing.get_origin(kind) is tuple:
            return spec("INT ...", _whole, tuple)
        if typing.get_origin(kind) is dict:
            return spec("{KEY: VALUE}", json.loads, dict)
        return None

    return registry


def whole(text: str, name: str) -> int:
    """A whole number of a verb's own option."""
    try:
        return _whole(text)
    except SettingError as error:
        raise SettingError(f"{name}: {error}") from None


def _whole(text: str) -> int:
    exact = number(text)
    if exact != int(exact):
        raise SettingError(f"{text} is not a whole number")
    return int(exact)


def _choice(text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        raise SettingError(f"{text!r} is not one of {', '.join(choices)}{suggestion(text, choices)}")
    return text


def all_options() -> str:
    """Every setting with its help, for --help-all."""
    import tyro

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        tyro.cli(Config, args=["--help"], prog="sfactory train TARGET", registry=_registry())
    return out.getvalue()
