"""Read metrics.jsonl: one JSON object per line, the last line possibly incomplete."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sfactory.files import MiB, open_to_read

METRICS_FILE = "metrics.jsonl"
LONGEST_LINE = 1 * MiB
MOST_VALUES = 4000
"""Metrics in a row; the Atari games together have about 600."""
LARGEST = 1e100
"""Numbers beyond are read as missing: their squares and sums must stay finite."""
LARGEST_COUNT = 2**63
LONGEST_TRAINING_S = 1e12

Row = dict[str, Any]
"""Metric -> number, or None where it was not finite; with `env_steps` and `seconds`."""


def rows_until(state: Mapping[str, Any]) -> int:
    """Trained steps of the last row that a resume from a checkpoint with this state keeps.

    A lockstep run that finishes writes one row more. If it goes on, the window of that row is not complete yet.
    """
    return int(state.get("rows_until", state["env_steps"]))


def parse_row(line: str) -> Row | None:
    """One line as a row; None if it is incomplete, damaged or no object of numbers with a count of `env_steps`."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or len(row) > MOST_VALUES or not is_count(row.get("env_steps")):
        return None
    if not all(value is None or is_number(value) for value in row.values()):
        return None
    if "seconds" in row and not (is_number(row["seconds"]) and 0 <= row["seconds"] < LONGEST_TRAINING_S):
        return None
    return {name: value if value is not None and -LARGEST < value < LARGEST else None for name, value in row.items()}


def is_number(value: object) -> bool:
    """Whether a value read from JSON is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    """Whether a value read from JSON is a number that a counter of 64 bits can have."""
    return is_number(value) and 0 <= value < LARGEST_COUNT  # type: ignore[operator]


def parse_rows(lines: Iterable[str]) -> Iterator[Row]:
    """Rows of these lines; lines that are no rows are left out."""
    for line in lines:
        row = parse_row(line)
        if row is not None:
            yield row


def lines_of(file: BinaryIO) -> Iterator[str]:
    """Lines of an open metrics.jsonl. A line that is too long for a row comes in parts, which are no rows."""
    while line := file.readline(LONGEST_LINE):
        yield line.decode("utf-8", "replace")


def read_rows(run_dir: Path) -> list[Row]:
    """All rows of a run; empty if there is no file or it cannot be read. Safe while the file is being written.

    FileRefused if metrics.jsonl is a link or no file.
    """
    try:
        with open_to_read(run_dir / METRICS_FILE) as file:
            return list(parse_rows(lines_of(file)))
    except OSError:
        return []
