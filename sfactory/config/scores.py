"""Read what the presets have reached: scores.toml beside the presets, written by `make scores`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from sfactory.config.presets import presets_dir
from sfactory.errors import SettingError

SCORES_FILE = "scores.toml"


@dataclass(frozen=True)
class PresetScore:
    """What finished runs of a preset have reached. Interquartile mean over seeds, median of the seconds."""

    what: str
    """What the score is, in words: `mean return in 100 episodes`."""
    score: float
    low: float
    """Lower end of the 95 % bootstrap interval over seeds."""
    high: float
    seeds: int
    steps: int
    """Length of a run."""
    seconds: float
    """From the command to its end."""
    machine: str
    """Cores and processor, in words."""
    busy: bool
    """Other programs used the processor too, so that it took longer."""
    date: str
    """Of the newest run, as 2026-12-01."""


def read_scores(path: Path | None = None) -> dict[str, PresetScore]:
    """The scores by preset; empty if none are recorded. SettingError for a file that cannot be read, in one line."""
    import msgspec

    path = path or presets_dir() / SCORES_FILE
    try:
        table = tomllib.loads(path.read_text())
        return msgspec.convert(table, dict[str, PresetScore])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:  # not text, not TOML, or other fields: msgspec's error is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise SettingError(f"{path}: the scores of presets cannot be read: {reason}") from error
