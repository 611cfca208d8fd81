"""From names, files and flags to one checked `Config`.

    preset TOML  <  --config FILE  <  TARGET's env.name  <  --section.field value        the right one wins

Every source becomes a `Layer`: dotted name -> the text a person could have typed. Layers are merged and given to
tyro as one command line, so there is one validator and one style of error, whichever source a value came from.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from sfactory.config import Config

ENV_GROUP = "sfactory.envs"  # entry points of environment families
SETTINGS = "env.settings"  # the one table with names of its own
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_NUMBER = re.compile(r"([+-]?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][+-]?\d+)?)([kKMGB]?)")
_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


class SettingError(ValueError):
    """A setting that cannot be; its text is one line for people."""


@dataclass(frozen=True)
class Given:
    """One value as it was given, and where: empty for the command line, else a file's name."""

    value: Any
    origin: str = ""


Layer = dict[str, Given]
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


# -- presets and files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """A TOML file that ships with the package."""

    name: str
    env: str
    description: str
    path: Path


def presets_dir() -> Path:
    """Where the presets lie: the installed package `sfactory_configs`, which holds TOML only."""
    spec = importlib.util.find_spec("sfactory_configs")
    if spec is None or not spec.submodule_search_locations:
        raise SettingError("the package sfactory_configs is not installed; reinstall sfactory")
    return Path(next(iter(spec.submodule_search_locations)))


def presets() -> list[Preset]:
    """All presets by name; a family's default.toml is no target of its own."""
    found = []
    for path in sorted(presets_dir().glob("*/*.toml")):
        if path.stem != "default":
            text = path.read_text()
            env = tomllib.loads(text).get("env", {}).get("name", "")
            name = f"{path.parent.name}/{path.stem}"
            found.append(Preset(name, env, text.partition("\n")[0].lstrip("# ").strip(), path))
    return found


def families() -> list[str]:
    """Names of the installed environment families, a user's own included."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=ENV_GROUP)})


def read_toml(path: Path) -> Layer:
    """A file as a layer. SettingError names the file, and the line where TOML says one."""
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path}: not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise SettingError(f"{path}: cannot be read ({reason})") from error
    layer: Layer = {}
    for section, values in table.items():
        if not isinstance(values, dict):
            raise SettingError(f"{path}: {section}: settings stand in sections; write [section] above it")
        for key, value in values.items():
            name = f"{section}.{key}".replace("-", "_")
            if name == SETTINGS and isinstance(value, dict):
                layer.update({f"{SETTINGS}.{k.replace('-', '_')}": Given(v, str(path)) for k, v in value.items()})
            else:
                layer[name] = Given(value, str(path))
    return layer


def target_layers(target: str, files: Sequence[Path] = ()) -> list[Layer]:
    """The layers of `TARGET --config FILE ...`, weakest first."""
    from_files = [read_toml(path) for path in files]
    if not target:
        if not any("env.name" in layer for layer in from_files):
            raise SettingError("no TARGET; name a preset (see `sfactory presets`) or FAMILY/ID (see `sfactory envs`)")
        return from_files
    if target.endswith(".toml"):
        raise SettingError(f"{target}: a file is given as --config {target}")
    family, slash, name = target.partition("/")
    if not slash or not family or not name or ".." in target:
        raise SettingError(f"{target}: no such preset{suggestion(target, _targets())}{_see()}")
    folder = presets_dir() / family
    if name != "default" and (folder / f"{name}.toml").is_file():
        return [read_toml(folder / f"{name}.toml"), *from_files]
    if family not in families():
        if folder.is_dir():
            raise SettingError(f"{target}: no such preset{suggestion(target, _targets())}{_see()}")
        known = sorted({*families(), *(p.name.partition("/")[0] for p in presets())})
        raise SettingError(f"{target}: no environment family {family}{suggestion(family, known)}{_see()}")
    default = folder / "default.toml"
    base = [read_toml(default)] if default.is_file() else []
    return [*base, *from_files, {"env.name": Given(target)}]


def _targets() -> list[str]:
    return [preset.name for preset in presets()]


def _see() -> str:
    return "; see `sfactory presets` and `sfactory envs`"


# -- the command line ----------------------------------------------------------------------------------------


def split_flags(args: Sequence[str], options: Mapping[str, bool]) -> tuple[Layer, dict[str, list[str]], list[str]]:
    """Sort a command line into settings, the verb's own options (name -> takes a value) and positionals."""
    layer: Layer = {}
    own: dict[str, list[str]] = {}
    positionals: list[str] = []
    rest = list(args)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-") or token == "-":
            positionals.append(token)
            continue
        flag, equals, inline = token.partition("=")
        if flag in options:
            if options[flag]:
                own.setdefault(flag, []).append(inline if equals else _next(flag, rest))
            elif equals:
                raise SettingError(f"{flag}: takes no value")
            else:
                own[flag] = []
            continue
        name, value = _setting(flag, inline if equals else None, rest, options)
        layer[name] = Given(value)
    return layer, own, positionals


def _next(flag: str, rest: list[str]) -> str:
    if not rest or rest[0].startswith("--"):
        raise SettingError(f"{flag.lstrip('-')}: a value is missing")
    return rest.pop(0)


def _setting(flag: str, inline: str | None, rest: list[str], options: Mapping[str, bool]) -> tuple[str, Any]:
    """Name and value of one `--section.field`; takes what it needs from the front of `rest`."""
    name = flag.lstrip("-").replace("-", "_")
    if name.startswith(SETTINGS + "."):
        return name, _literal(inline if inline is not None else _next(flag, rest))
    section, _, key = name.partition(".")
    positive = f"{section}.{key.removeprefix('no_')}"
    if name not in field_types() and field_types().get(positive) is bool and inline is None:
        return positive, False
    _check_name(name, flag.lstrip("-"), options)
    kind = field_types()[name]
    if kind is bool:
        if inline is None:
            inline = rest.pop(0) if rest and rest[0].lower() in _WORDS else "true"
        return name, inline
    if typing.get_origin(kind) is tuple:
        if inline is not None:
            return name, [part for part in inline.split(",") if part]
        values = []
        while rest and re.match(r"[\d,]+$", rest[0]):
            values += [part for part in rest.pop(0).split(",") if part]
        return name, values or [_next(flag, rest)]
    return name, inline if inline is not None else _next(flag, rest)


def _check_name(name: str, typed: str, options: Iterable[str] = ()) -> None:
    if name not in field_types() and not name.startswith(SETTINGS + "."):
        known = [*map(shown, field_types()), *(option.lstrip("-") for option in options)]
        raise SettingError(f"{typed}: no such setting{suggestion(shown(name), known)}")


def _literal(text: str) -> Any:
    """A value of a table without types: what TOML makes of it (10M is a number too), else the text."""
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if "\n" not in text:
            return tomllib.loads(f"v = {text}")["v"]
    with contextlib.suppress(SettingError):
        exact = number(text)
        return int(exact) if exact == int(exact) else float(exact)
    return {"True": True, "False": False}.get(text, text)


# -- validation ----------------------------------------------------------------------------------------------


def build(*layers: Layer) -> Config:
    """Merge the layers, weakest first, and check everything. Raises SettingError with one line."""
    merged: Layer = {}
    for layer in layers:
        for name, given in layer.items():
            try:
                _check_name(name, shown(name))
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


def _from(origin: str, error: Exception) -> SettingError:
    return SettingError(f"{origin}: {error}" if origin else str(error))


def _argument(name: str, value: Any) -> list[str]:
    """One setting as tyro wants to see it. With `=`, a value that begins with a dash is no option."""
    kind = field_types()[name]
    if isinstance(value, dict):
        raise SettingError(f"{shown(name)}: expected one value, got a table")
    if kind is bool:
        word = _WORDS.get(str(value).lower())
        if word is None:
            raise SettingError(f"{shown(name)}: {value!r} is neither true nor false")
        section, key = shown(name).split(".")
        return [f"--{section}.{'' if word else 'no-'}{key}"]
    if typing.get_origin(kind) is tuple:
        return [f"--{shown(name)}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    if isinstance(value, list):
        raise SettingError(f"{shown(name)}: expected one value, got {len(value)}")
    return [f"--{shown(name)}={value}"]


def _tyro(argv: list[str], merged: Layer) -> Config:
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
