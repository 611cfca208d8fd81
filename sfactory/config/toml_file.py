"""A configuration as TOML: `config.toml` of a run folder, and lists of settings that people copy."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfactory.config import Config, to_dict
from sfactory.config.renamed import current_name
from sfactory.config.values import for_toml
from sfactory.errors import SettingError


def to_toml(config: Config) -> str:
    """All settings as TOML; `from_toml` reads them back equal.

    TOML has no null: a setting of None is left out, None in the environment's settings is `{python = "None"}`.
    """
    return _dumps(to_dict(config))


def settings_to_toml(settings: Mapping[str, Any]) -> str:
    """Some settings by dotted name (`optim.lr`) as TOML, section by section."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return _dumps(sections)


def _dumps(sections: Mapping[str, Mapping[str, Any]]) -> str:
    import tomli_w  # 5 ms that only writers pay

    return tomli_w.dumps(
        {name: {k: for_toml(v) for k, v in values.items() if v is not None} for name, values in sections.items()}
    )


def from_toml(path: Path) -> Config:
    """Read what `to_toml` wrote, also with old names of settings. ValueError names the file, on one line."""
    try:
        table = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    classes = typing.get_type_hints(Config)
    sections: dict[str, dict[str, Any]] = {}
    for given_section, values in table.items():
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {given_section}: no such section")
        for given_key, value in values.items():
            section, _, key = current_name(f"{given_section}.{given_key}").partition(".")
            if section not in classes:
                raise ValueError(f"{path}: {given_section}: no such section")
            if key not in {f.name for f in dataclasses.fields(classes[section])}:
                raise ValueError(f"{path}: {given_section}.{given_key}: no such setting")
            sections.setdefault(section, {})[key] = tuple(value) if isinstance(value, list) else value
    try:
        return Config(**{section: classes[section](**values) for section, values in sections.items()})
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
