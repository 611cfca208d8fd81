"""A configuration as TOML: `config.toml` of a run folder, and lists of settings that people copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfactory.config import Config, to_dict
from sfactory.config.parsing import build
from sfactory.config.presets import recorded_layer
from sfactory.config.values import for_toml


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
    """Read what `to_toml` wrote, also with old names of settings, and check it. ValueError, one line, names the file.

    The file may be a stranger's: it is read as a layer of settings, whose types are checked before any rule.
    """
    return build(recorded_layer(Path(path)))
