"""Write episodes.csv: one line for every complete episode of a run. Free of torch.

    episode,env_steps,seconds,task,return,length,is_success
    1,256,0.41,my_file:MyEnv,-12.5,200,0

`episode` counts the complete episodes of the run over all launches, as charts/games does. Lines are written before the
learner hears of their episodes: a file is never behind a checkpoint. A resume removes the episodes that its checkpoint
does not count, so that each episode of the curve has exactly one line. A number of `info` that has the name of one of
the first columns is in the column `info/NAME`.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sfactory.files import open_to_append, open_to_read, require
from sfactory.monitor.table import MAX_INFOS

EPISODES_FILE = "episodes.csv"
COLUMNS = ("episode", "env_steps", "seconds", "task", "return", "length")
LONGEST_LINE = 1 << 16


class EpisodeLine(NamedTuple):
    """An episode, and when it ended."""

    env_steps: int
    """Trained steps when its end was reported."""
    seconds: float
    """Of training, at the same moment."""
    task: str
    episodic_return: float
    length: int
    infos: Mapping[str, float]


class EpisodeFile:
    """Appends episodes; a number of `info` that comes for the first time gets a column in the whole file."""

    def __init__(self, folder: Path, names: Sequence[str], count: int | None, env_steps: int) -> None:
        """Keep the first `count` episodes of an earlier launch; None: those up to `env_steps`, of one rank of a job.

        names: numbers of `info` that get a column at once.
        """
        self.path = folder / EPISODES_FILE
        self.names = list(dict.fromkeys(map(_column, names)))  # of the columns behind the first ones
        self.count = 0 if count is None else count
        self._seconds = 0.0
        if self.path.exists():
            self.names += [name for name in _names(self.path) if name not in self.names]
            kept = 0

            def keep(cells: dict[str, str]) -> bool:
                nonlocal kept
                number, steps = int(cells["episode"]), int(cells["env_steps"])
                good = number <= count if count is not None else steps <= env_steps
                kept = max(kept, number) if good else kept
                return good

            self._rewrite(keep)
            self.count = kept if count is None else count
            self._file = open_to_append(self.path)
        else:
            self._file = open_to_append(self.path)
            self._file.write(_line([*COLUMNS, *self.names]))
            self._file.flush()

    def add(self, episodes: Iterable[EpisodeLine]) -> None:
        """Write some episodes; they are in the file when this returns."""
        lines = [line._replace(infos={_column(name): x for name, x in line.infos.items()}) for line in episodes]
        new = dict.fromkeys(name for line in lines for name in line.infos if name not in self.names)
        if new and len(self.names) < MAX_INFOS:
            self.names += list(new)[: MAX_INFOS - len(self.names)]
            self._file.close()
            self._rewrite(lambda cells: True)
            self._file = open_to_append(self.path)
        text = []
        for line in lines:
            self.count += 1
            self._seconds = max(self._seconds, line.seconds)
            when = [self.count, line.env_steps, round(self._seconds, 3)]
            infos = [_short(line.infos[name]) if name in line.infos else "" for name in self.names]
            text.append(_line([*when, line.task, _short(line.episodic_return), line.length, *infos]))
        self._file.write("".join(text))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, keep: Any) -> None:
        """Replace the file in one step by its good lines for which `keep` holds, with the columns of today."""
        require(self.path, "a file")
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)  # of a process that was killed
        with open(temporary, "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_line([*COLUMNS, *self.names]))
            for cells in read_episodes(self.path):
                if keep(cells):
                    file.write(_line([cells.get(name, "") for name in (*COLUMNS, *self.names)]))
        temporary.replace(self.path)


def read_episodes(path: Path) -> Iterator[dict[str, str]]:
    """Lines of an episodes.csv as texts by column; an incomplete or damaged line is left out."""
    with open_to_read(path) as file:
        head: list[str] | None = None
        while line := file.readline(LONGEST_LINE):
            cells = _cells(line)
            if head is None:
                head = cells
                if tuple(head[: len(COLUMNS)]) != COLUMNS:
                    return
            elif line.endswith(b"\n") and len(cells) == len(head) and all(c.isdecimal() for c in cells[:2]):
                # Of columns with the same name the first: earlier versions gave a number of info such a name.
                yield dict(zip(reversed(head), reversed(cells), strict=True))


def _names(path: Path) -> list[str]:
    """Numbers of `info` that have a column."""
    with open_to_read(path) as file:
        cells = _cells(file.readline(LONGEST_LINE))
    return list(map(_column, cells[len(COLUMNS) :]))[:MAX_INFOS] if tuple(cells[: len(COLUMNS)]) == COLUMNS else []


def _column(name: str) -> str:
    """Column of a number of `info`."""
    return f"info/{name}" if name in COLUMNS else name


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8", "replace").rstrip("\r\n")]), [])
    except csv.Error:
        return []


def _line(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _short(value: float) -> int | float:
    """A whole number without a decimal point."""
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)
