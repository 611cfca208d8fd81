"""A configuration as a file: `config.toml` of a run folder. The standard library reads TOML and does not write it."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from sfactory.config import Config, to_dict


def to_toml(config: Config) -> str:
    """The resolved settings; `from_toml` reads them back equal. None has no TOML: the key is left out."""
    lines: list[str] = []
    for section, values in to_dict(config).items():
        lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        lines += [f"{_toml_key(key)} = {_toml(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def from_toml(path: Path) -> Config:
    """Read back what `to_toml` wrote. Raises ValueError with one line that names the file."""
    try:
        table = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    sections: dict[str, Any] = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    parts: dict[str, Any] = {}
    for section, values in table.items():
        if section not in sections or not isinstance(values, dict):
            raise ValueError(f"{path}: {section}: no such section")
        known = {f.name for f in dataclasses.fields(sections[section])}
        strange = sorted(set(values) - known)
        if strange:
            raise ValueError(f"{path}: {section}.{strange[0]}: no such setting")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        parts[section] = sections[section](**values)
    return Config(**parts)


def _toml(value: Any) -> str:
    if isinstance(value, (bool, int, float)):
        return repr(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's basic strings are JSON's
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    raise ValueError(f"{value!r} cannot be written as TOML")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)
