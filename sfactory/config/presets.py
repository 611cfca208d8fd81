"""Read presets, files and flags into layers of settings.

    preset TOML  <  --config FILE  <  TARGET's env.name  <  --section.field value        the right one wins

`sfactory.config.parsing.build` merges the layers into a `Config`.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfactory.config.parsing import (
    SETTINGS,
    WORDS,
    ConfigLayer,
    RawValue,
    check_name,
    field_type,
    number,
)
from sfactory.config.renamed import current_name
from sfactory.errors import SettingError, did_you_mean

ENV_GROUP = "sfactory.envs"  # entry points of environment families


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
    return [_preset(path) for path in sorted(presets_dir().glob("*/*.toml")) if path.stem != "default"]


def family_defaults() -> list[Preset]:
    """What every other environment of a family is trained with: `atari/*` and so on."""
    return [_preset(path) for path in sorted(presets_dir().glob("*/default.toml"))]


def _preset(path: Path) -> Preset:
    text = path.read_text()
    env = tomllib.loads(text).get("env", {}).get("name", "")
    name = f"{path.parent.name}/{'*' if path.stem == 'default' else path.stem}"
    return Preset(name, env, text.partition("\n")[0].lstrip("# ").strip(), path)


def families() -> list[str]:
    """Names of the installed environment families, a user's own included."""
    return sorted({point.name for point in importlib.metadata.entry_points(group=ENV_GROUP)})


def read_toml(path: Path) -> ConfigLayer:
    """Read a file as a layer. SettingError names the file, and the line where TOML reports one.

    Old names in a `config.toml` are translated here and thus not reported: sfactory wrote that file, not a person.
    """
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path}: not valid TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise SettingError(f"{path}: cannot be read ({reason})") from error
    layer: ConfigLayer = {}
    for section, values in table.items():
        if not isinstance(values, dict):
            raise SettingError(f"{path}: {section}: settings belong in sections; write [section] above it")
        for key, value in values.items():
            name = f"{section}.{key}".replace("-", "_")
            name = current_name(name) if path.name == "config.toml" else name
            if name == SETTINGS and isinstance(value, dict):
                layer.update({f"{SETTINGS}.{k.replace('-', '_')}": RawValue(v, str(path)) for k, v in value.items()})
            else:
                layer[name] = RawValue(value, str(path))
    return layer


def target_layers(target: str, files: Sequence[Path] = ()) -> list[ConfigLayer]:
    """The layers of `TARGET --config FILE ...`, weakest first."""
    from_files = [read_toml(path) for path in files]
    if not target:
        if not any("env.name" in layer for layer in from_files):
            raise SettingError("no TARGET; name a preset (see `sfactory presets`) or FAMILY/ID (see `sfactory envs`)")
        return from_files
    if target.endswith(".toml"):
        raise SettingError(f"{target}: a file is given as --config {target}")
    family, slash, name = target.partition("/")
    if "," in target:  # several tasks: the family of the first says the defaults
        tasks = [task.strip() for task in target.split(",")]
        bare = next((task for task in tasks if "/" not in task), None)
        if bare is not None:
            raise SettingError(f"{target}: {bare or 'an empty name'} is no FAMILY/ID{_see()}")
        name = "default"
    if not slash or not family or not name or ".." in target:
        raise SettingError(f"{target}: no such preset{_meant(target)}{_see()}")
    folder = presets_dir() / family
    if name != "default" and (folder / f"{name}.toml").is_file():
        return [read_toml(folder / f"{name}.toml"), *from_files]
    if family not in families():
        if folder.is_dir():
            raise SettingError(f"{target}: no such preset{_meant(target)}{_see()}")
        known = sorted({*families(), *(p.name.partition("/")[0] for p in presets())})
        raise SettingError(f"{target}: no environment family {family}{did_you_mean(family, known)}{_see()}")
    default = folder / "default.toml"
    base = [read_toml(default)] if default.is_file() else []
    return [*base, *from_files, {"env.name": RawValue(target)}]


def near_target(target: str) -> str:
    """The preset that was probably meant, by its name, its environment or the last part of either; or nothing."""
    family, slash, _ = target.lower().partition("/")
    named: dict[str, str] = {}
    for preset in presets():
        for name in (preset.name.lower(), preset.env.lower()):
            if not slash:
                named.setdefault(name.rpartition("/")[2], preset.name)
            elif family not in families() or name.startswith(f"{family}/"):  # atari/breakout is not minatar's
                named.setdefault(name, preset.name)
    near = difflib.get_close_matches(target.lower(), named, 1, 0.75)
    return named[near[0]] if near else ""


def _meant(target: str) -> str:
    near = near_target(target)
    return f"; did you mean {near}?" if near else ""


def _see() -> str:
    return "; see `sfactory presets` and `sfactory envs`"


# -- the command line ----------------------------------------------------------------------------------------


def split_flags(
    args: Sequence[str], options: Mapping[str, bool]
) -> tuple[ConfigLayer, dict[str, list[str]], list[str]]:
    """Sort a command line into settings, the verb's own options (name -> takes a value) and positionals."""
    layer: ConfigLayer = {}
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
        layer[name] = RawValue(value)
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
    if field_type(name) is None and field_type(positive) is bool and inline is None:
        return positive, False
    check_name(name, flag.lstrip("-"), options)
    kind = field_type(name)
    if kind is bool:
        if inline is None:
            inline = rest.pop(0) if rest and rest[0].lower() in WORDS else "true"
        return name, inline
    if typing.get_origin(kind) is tuple:
        if inline is not None:
            return name, [part for part in inline.split(",") if part]
        values = []
        while rest and re.match(r"[\d,]+$", rest[0]):
            values += [part for part in rest.pop(0).split(",") if part]
        return name, values or [_next(flag, rest)]
    return name, inline if inline is not None else _next(flag, rest)


def _literal(text: str) -> Any:
    """A value of a table without types: what TOML makes of it (10M is a number too), else the text."""
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if "\n" not in text:
            return tomllib.loads(f"v = {text}")["v"]
    with contextlib.suppress(SettingError):
        exact = number(text)
        return int(exact) if exact == int(exact) else float(exact)
    return {"True": True, "False": False}.get(text, text)
