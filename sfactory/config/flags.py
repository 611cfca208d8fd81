"""Settings on a command line: `--section.field value` as a layer of configuration, and all of them as help.

Accepted forms: dashes or underscores, `--name value` and `--name=value`, several values for a tuple, a bare flag and
`--section.no-flag` for booleans, `--env.settings.KEY VALUE` for settings of the environment, where KEY may be a path
into tables, as config.vehicles, and short forms (`sfactory.config.short_forms`). The last one wins, whatever its form.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from sfactory.config import schema
from sfactory.config.bounds import ENCODER_NAMES
from sfactory.config.known_names import names_target
from sfactory.config.parsing import WORDS, ConfigLayer, RawValue, check_name, field_type, field_types, flag_name
from sfactory.config.schema import Config
from sfactory.config.short_forms import RUNS, SHORT_FORMS, folder_of, long_name
from sfactory.config.tables import PLACEHOLDERS, key_path, table_of, typed_name
from sfactory.config.values import as_text, from_text
from sfactory.errors import SettingError

COMPLETED = {"run.dir": "directory", "run.init_from": "run"}
"""What a shell offers as value of a setting; see `complete` in sfactory.cli.args."""


def split_flags(
    args: Sequence[str], options: Mapping[str, bool] | None = None
) -> tuple[ConfigLayer, list[str], list[str]]:
    """Separate a command line into settings, the command's own options, and positionals.

    Args:
        args: the words after the command.
        options: the command's own options, name -> whether it takes a value. Everything else that begins with a dash
            must be a setting.

    Returns:
        The settings as a layer; own options, a value joined to its name by `=`; positionals in their order.

    Raises:
        SettingError: unknown name (with a suggestion), missing value, value of an option that takes none.
    """
    options = options or {}
    layer: ConfigLayer = {}
    own: list[str] = []
    positionals: list[str] = []
    rest = list(args)
    while rest:
        token = rest.pop(0)
        flag, equals, inline = token.partition("=")
        if not token.startswith("-") or token == "-":
            positionals.append(token)
        elif flag in options:
            if equals and not options[flag]:
                raise SettingError(f"{flag}: takes no value")
            own.append(token if equals or not options[flag] else f"{flag}={_next(flag, rest)}")
        else:
            name, value = _setting(flag, inline if equals else None, rest, options)
            layer.pop(name, None)  # the last one comes last: tables are merged in order
            layer[name] = RawValue(value)
    return layer, own, positionals


def _next(flag: str, rest: list[str]) -> str:
    """Remove and return the value of `flag`; a single dash may begin one, as in -0.5."""
    if not rest or rest[0].startswith("--"):
        raise SettingError(f"{flag.lstrip('-')}: a value is missing")
    return rest.pop(0)


def _setting(flag: str, inline: str | None, rest: list[str], options: Mapping[str, bool]) -> tuple[str, Any]:
    """Name and value of one `--section.field`; values are removed from the front of `rest`."""
    name = long_name(typed_name(flag.lstrip("-")))
    if name == "run.dir" and "." not in flag:
        return name, folder_of(inline if inline is not None else _next(flag, rest))
    if (table := table_of(name)) and name != table:
        if not all(key_path(name) or [""]):
            raise SettingError(f"{flag.lstrip('-')}: a key is missing; write --{PLACEHOLDERS[table]} value")
        return name, _value(flag, inline if inline is not None else _next(flag, rest))
    section, _, key = name.partition(".")
    positive = f"{section}.{key.removeprefix('no_')}"
    if field_type(name) is None and field_type(positive) is bool and inline is None:
        return positive, False
    try:
        check_name(name, flag.lstrip("-"), options)
    except SettingError as error:
        raise SettingError(f"{error}{_for_target(name, inline or next(iter(rest), ''))}") from None
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


def _value(flag: str, text: str) -> Any:
    """Value of a setting without a declared type. SettingError names the flag."""
    try:
        return from_text(text)
    except SettingError as error:
        raise SettingError(f"{flag.lstrip('-')}: {error}") from None


# -- help and completion -------------------------------------------------------------------------------------


def add_settings(parser: argparse.ArgumentParser, keys: bool = True, config: Config | None = None) -> None:
    """Declare every setting on `parser` with its meaning, default and choices, one group per section.

    For --help-all and shell completion. Command lines are read by `split_flags`, which also takes the forms that
    argparse does not know.

    Args:
        keys: declare the placeholder `--env.settings.KEY` instead of a complete table.
        config: the values that are shown as defaults; None: those of a run without a preset.
    """
    meanings = field_help()
    config = config or Config()
    defaults = {section: getattr(config, section) for section in typing.get_type_hints(Config)}
    groups: dict[str, Any] = {}
    for name, kind in field_types().items():
        section, _, key = name.partition(".")
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        group = groups[section]
        meaning = _help(meanings.get(name, ""))
        default = getattr(defaults[section], key)
        if name in PLACEHOLDERS:
            flag = PLACEHOLDERS[name] if keys else flag_name(name)
            text = f"{meaning} (default: {_help(as_text(default))})" if default else meaning
            group.add_argument(f"--{flag}", metavar="VALUE" if keys else "TABLE", help=text)
            continue
        text = f"{meaning} (default: {_help(_shown_value(default))})"
        names = [f"--{flag_name(name)}"]
        if kind is bool:
            group.add_argument(*names, f"--{section}.no-{flag_name(key)}", action="store_true", help=text)
        else:
            action = group.add_argument(*names, metavar=_metavar(kind), choices=_choices(name, kind), help=text)
            if name in COMPLETED:
                action.complete = COMPLETED[name]
    _add_short_forms(parser)


def _add_short_forms(parser: argparse.ArgumentParser) -> None:
    """Declare the short forms, except those that are options of the command itself, as `bench --seconds`."""
    group = parser.add_argument_group("short forms")
    for short, name in SHORT_FORMS.items():
        if f"--{short}" in parser._option_string_actions:
            continue
        kind = field_types()[name]
        if short == "name":
            group.add_argument("--name", metavar="NAME", help=f"the same as --{flag_name(name)} {RUNS}/NAME")
            continue
        text = f"the same as --{flag_name(name)}"
        group.add_argument(f"--{short}", metavar=_metavar(kind), choices=_choices(name, kind), help=text)


def _for_target(name: str, value: str) -> str:
    """What to type for the value of an unknown flag that names an environment, as --env CartPole-v1; else empty."""
    from sfactory.config.known_envs import instead_of
    from sfactory.config.presets import presets

    instead = instead_of(value, presets()) if names_target(name) else ""
    return f"; for {value} {instead}" if instead else ""


@functools.cache
def field_help() -> dict[str, str]:
    """Dotted name -> help text of every setting: the docstring under its field, on one line."""
    import ast
    import inspect

    classes = {node.name: node for node in ast.parse(inspect.getsource(schema)).body if isinstance(node, ast.ClassDef)}
    found = {}
    for section, cls in typing.get_type_hints(Config).items():
        for statement, after in itertools.pairwise(classes[cls.__name__].body):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                text = " ".join(ast.literal_eval(after.value).split())
                found[f"{section}.{ast.unparse(statement.target)}"] = text
    return found


def _help(text: str) -> str:
    """Text as argparse takes it in help."""
    return text.replace("%", "%%")


def _choices(name: str, kind: Any) -> tuple[str, ...] | None:
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return {"model.encoder": ENCODER_NAMES, "run.device": ("auto", "cpu", "cuda")}.get(name)


def _metavar(kind: Any) -> str:
    """Placeholder of a value, from its type."""
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    if typing.get_origin(kind) is tuple:
        return "INT,..."
    return {int: "INT", float: "FLOAT", str: "TEXT"}.get(kind, "FLOAT|none")


def _shown_value(value: Any) -> str:
    """A default as it would be typed."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "empty"
    return str(value) or "empty"
