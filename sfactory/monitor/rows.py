"""Read metrics.jsonl: one JSON object per line, the last line possibly incomplete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"

Row = dict[str, Any]
"""Metric -> number, or None where it was not finite; with `env_steps` and `seconds`."""


def rows_until(state: Mapping[str, Any]) -> int:
    """Trained steps of the last row that a resume from a checkpoint with this state keeps.

    A lockstep run that finishes writes one row more. If it goes on, the window of that row is not complete yet.
    """
    return int(state.get("rows_until", state["env_steps"]))


def parse_row(line: str) -> Row | None:
    """One line as a row; None if it is incomplete, damaged or no object with a number of `env_steps`."""
    try:
        row = json.loads(line)
        row["env_steps"] + 0
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def parse_rows(lines: Iterable[str]) -> Iterator[Row]:
    """Rows of these lines; lines that are no rows are left out."""
    for line in lines:
        row = parse_row(line)
        if row is not None:
            yield row


def read_rows(run_dir: Path) -> list[Row]:
    """All rows of a run; empty if there is no file or it cannot be read. Safe while the file is being written."""
    try:
        lines = (run_dir / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return list(parse_rows(lines))
