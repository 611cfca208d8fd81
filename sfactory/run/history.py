"""The file `pbt.json` of a population: its settings, and what every member had reached at the end of every round.

It is replaced in one step, so that a reader, and the same command after a crash, finds the state before or after a
round. Nothing in it depends on time: two populations with the same history are equal bit for bit, because the history
holds the hash of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sfactory.errors import CommandError, Exit
from sfactory.files import MiB, read_text, replace_text

FILE = "pbt.json"
FORMAT = 1
LONGEST = 256 * MiB


@dataclass(frozen=True)
class Record:
    """A member at the end of a round: what it publishes, and what it does next."""

    member: int
    round: int
    """From 1."""
    env_steps: int
    """Trained by this member: its own clock, whatever policy it has taken over."""
    score: float | None
    """Training return, or the mean of the newest evaluation; None if it is not known."""
    error: float
    """Standard error of the score; 0 where it is not known."""
    settings: dict[str, Any]
    """The settings that differ between members, as it was trained with."""
    weights: str = ""
    """SHA-256 of the file with the weights."""
    failed: bool = False
    """The losses were not finite: the member cannot go on by itself."""
    source: int | None = None
    """Member whose policy it takes over; None: it goes on with its own."""
    source_steps: int = 0
    """Steps of the checkpoint that it takes over, by the clock of its source."""
    next_settings: dict[str, Any] = field(default_factory=dict)
    """The settings of the next round."""


@dataclass(frozen=True)
class History:
    """Contents of `pbt.json`."""

    options: dict[str, Any]
    """Everything that the decisions depend on; another command cannot continue the population."""
    initial: list[dict[str, Any]]
    """Settings of every member in its first round."""
    records: tuple[Record, ...] = ()
    """In the order in which the decisions were taken."""
    winner: int | None = None
    """Member with the best final score, when all have finished."""
    finished: bool = False

    def of(self, member: int) -> list[Record]:
        """The records of one member, by round."""
        return [record for record in self.records if record.member == member]

    def settings(self, member: int) -> dict[str, Any]:
        """The settings of the round that a member is in."""
        own = self.of(member)
        return own[-1].next_settings if own else self.initial[member]

    def newest(self) -> dict[int, Record]:
        """The newest record of every member that has one."""
        return {record.member: record for record in self.records}

    def extended(self, records: Sequence[Record]) -> History:
        """The history with more records."""
        return replace(self, records=(*self.records, *records))


def read_history(folder: Path) -> History | None:
    """The history of a population; None if there is none. CommandError (exit 2) if the file cannot be used."""
    try:
        content = json.loads(read_text(folder / FILE, LONGEST))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CommandError(Exit.USAGE, f"{folder / FILE} cannot be read ({error}); choose another --dir") from error
    try:
        if content["format"] != FORMAT:
            raise CommandError(Exit.USAGE, f"{folder / FILE}: format {content['format']}, this version reads {FORMAT}")
        records = tuple(Record(**record) for record in content["records"])
        return History(content["options"], content["initial"], records, content["winner"], content["finished"])
    except (KeyError, TypeError) as error:
        raise CommandError(Exit.USAGE, f"{folder / FILE} is no history of a population ({error})") from error


def write_history(folder: Path, history: History) -> None:
    """Replace the file in one step."""
    replace_text(folder / FILE, json.dumps(as_json(history), indent=1) + "\n")


def as_json(history: History) -> Mapping[str, Any]:
    """The history as JSON can hold it."""
    return {"format": FORMAT, **asdict(history)}
