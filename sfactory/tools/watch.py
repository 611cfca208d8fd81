"""Show the live panel of a run of another process, from the files of its folder. Writes nothing."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfactory.config.toml_file import from_toml
from sfactory.files import open_to_read, read_end
from sfactory.monitor.known_rooflines import known_roofline
from sfactory.monitor.panel import ReturnHistory, Snapshot
from sfactory.monitor.rows import METRICS_FILE, lines_of, parse_rows
from sfactory.monitor.writers import ProgressOutput
from sfactory.run import checkpoint
from sfactory.run.reader import read_status, run_state, status_written_at

EVERY_S = 1.0
FAULT = re.compile(r"^\S+ \S+ ((?:sampler-\d+|inference|learner|environment \d+)\b.*)")  # dated lines of log.txt
TAIL = 16384  # bytes read from the end of log.txt


class RunWatcher:
    """Read a run folder repeatedly; every row is read once. Raises ValueError without a config.toml."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self.config = from_toml(self.run_dir / "config.toml")
        self._reset()

    def _reset(self) -> None:
        self.history = ReturnHistory()
        self.row: dict[str, Any] = {}
        self._inode, self._at = -1, 0

    def read(self, now: float) -> Snapshot:
        """Return a snapshot of the run at the time `now` (seconds since the epoch, for ages)."""
        written_at = self._read_rows()
        status = read_status(self.run_dir)
        state, state_at = run_state(self.run_dir, status), status_written_at(self.run_dir)
        reached = status if state != "running" else {}  # at its end a run may be further than its last row
        since = max(0.0, now - written_at) if state == "running" else 0.0
        config, saved = self.config, checkpoint.last_saved(self.run_dir, now if state == "running" else state_at)
        if saved is not None:
            saved = saved[0], max(0.0, saved[1] - since)  # panels add `since`
        env_steps, seconds = (_further(self.row, reached, name) for name in ("env_steps", "seconds"))
        return Snapshot(
            row=self.row, env_steps=int(env_steps), seconds=seconds,
            stop=config.stop, name=self.run_dir.resolve().name, env=config.env.name, protocol=config.env.protocol,
            mode=config.run.mode, device="" if config.run.device == "auto" else config.run.device,
            history=tuple(self.history.points), checkpoint=saved, faults=_faults(self.run_dir),
            slots=config.sampling.num_groups * config.sampling.slots_per_group, since=since, state=state,
            roofline=known_roofline(config),
        )  # fmt: skip

    def _read_rows(self) -> float:
        """Read new rows; returns when the newest was written. A resume replaces the file, which is then read again."""
        try:
            with open_to_read(self.run_dir / METRICS_FILE) as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._at:
                    self._reset()
                    self._inode = stat.st_ino
                file.seek(self._at)
                for line in lines_of(file):
                    if not line.endswith("\n") and file.tell() >= stat.st_size:
                        break  # the last line may be incomplete
                    self._at = file.tell()
                    self.row = self.history.add_rows(parse_rows([line]), self.row)
        except FileNotFoundError:
            return time.time()
        return stat.st_mtime


def watch(run_dir: Path) -> Snapshot:
    """Show the run until it ends or Ctrl-C is pressed, which does not stop the run; returns the last snapshot."""
    watcher = RunWatcher(run_dir)
    snapshot = watcher.read(time.time())
    console = ProgressOutput(watcher.config.log.console_seconds, quiet=False)
    try:
        while True:
            console.show(snapshot)
            if snapshot.state != "running" or console.stream.gone:
                return snapshot
            time.sleep(EVERY_S)
            snapshot = watcher.read(time.time())
    except KeyboardInterrupt:
        return snapshot
    finally:
        console.close()


def _further(row: Mapping[str, Any], status: Mapping[str, Any], name: str) -> float:
    """The larger of a counter in the newest row and in the status."""
    return max(float(row.get(name) or 0.0), float(status.get(name) or 0.0))


def _faults(run_dir: Path) -> tuple[str, ...]:
    """Return the last three faults in log.txt."""
    try:
        lines = read_end(run_dir / "log.txt", TAIL)[0].splitlines()
    except OSError:
        return ()
    return tuple(found[1] for line in lines if (found := FAULT.match(line)))[-3:]
