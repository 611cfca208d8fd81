"""Write metrics and events: metrics.jsonl, episodes.csv, TensorBoard, console, log.txt, status.json, Weights & Biases.

No error here stops training: a full disk or a missing folder is reported once per output and then ignored. TensorBoard
files are written with `RecordWriter`, not `EventFileWriter`: when the thread of the latter fails on a full disk, its
eleventh event blocks the caller forever. Importing torch.utils.tensorboard would cost 0.9 s and 220 MB.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from sfactory.config import Config
from sfactory.config.toml_file import to_toml
from sfactory.files import open_lock, open_to_append, open_to_read, replace_text, replace_text_in
from sfactory.monitor.console import ConsoleStream, console_stream, left_out_note
from sfactory.monitor.episode_file import EPISODES_FILE, EpisodeFile, EpisodeLine
from sfactory.monitor.format import printable
from sfactory.monitor.panel import Snapshot
from sfactory.monitor.rows import METRICS_FILE, lines_of, parse_row, read_rows
from sfactory.monitor.wandb_output import SentRows, WandbOutput

MOST_RECORDS = 100_000
"""Of an event file in which videos are continued, one for each video."""


class Writers:
    """All outputs of one launch. resume_env_steps: later rows are dropped; None for a new run."""

    def __init__(self, run_dir: Path, config: Config, resume_env_steps: int | None, tensorboard: bool = True) -> None:
        self.run_dir, self.config, self._to_tensorboard = Path(run_dir), config, tensorboard
        self._warned: set[str] = set()
        self._last = -1
        self._log_file: TextIO | None = None
        self._rows: TextIO | None = None
        self._episodes: EpisodeFile | None = None
        self._episodes_kept = False
        self._tensorboard: TensorBoard | None = None
        self._wandb: WandbOutput | None = None
        self._console = ProgressOutput(config.log.console_seconds, config.log.quiet)
        sent = SentRows()
        with self._ignoring_errors(METRICS_FILE):
            if config.log.wandb and resume_env_steps is not None:
                sent = SentRows.of(self.run_dir)
            self._last = drop_rows_after(self.run_dir, -1 if resume_env_steps is None else resume_env_steps)
        self._open_files(resume_env_steps)
        if config.log.wandb:
            with self._ignoring_errors("Weights & Biases"):
                self._wandb = WandbOutput(self.run_dir, config, resume_env_steps is None, sent)
                if kept := self._wandb.kept_rows(-1 if resume_env_steps is None else resume_env_steps):
                    self.log(kept)

    def _open_files(self, resume_env_steps: int | None) -> None:
        with self._ignoring_errors("log.txt"):
            self._log_file = open_to_append(self.run_dir / "log.txt")
        with self._ignoring_errors(METRICS_FILE):
            self._rows = open_to_append(self.run_dir / METRICS_FILE)
        with self._ignoring_errors("TensorBoard"):
            if self._to_tensorboard:
                self._tensorboard = TensorBoard(self.run_dir / "tb", resume_env_steps)
                indented = "".join(f"    {line}\n" for line in to_toml(self.config).splitlines())  # code in Markdown
                self._tensorboard.text("settings", indented, max(0, resume_env_steps or 0))

    def reopen(self) -> None:
        """Continue in new files: the folder was replaced by a new one."""
        written = self._episodes.count if self._episodes is not None else 0
        self._close_files()
        self._open_files(self._last)
        if self._episodes_kept and self.config.log.episodes:
            self._episodes_kept = False
            self.keep_episodes(written, self._last)

    @property
    def last_step(self) -> int:
        """env_steps of the last row; -1 before the first."""
        return self._last

    def row(self, env_steps: int, seconds: float, metrics: Mapping[str, float]) -> dict[str, float]:
        """Write one row to every output; returns it with the load of the machine added.

        The step axis increases strictly: a row at or before the last step is not written.
        """
        values = dict(metrics)
        if env_steps <= self._last:
            return values
        self._last = env_steps
        with self._ignoring_errors("machine load"):
            values |= machine_load()
        with self._ignoring_errors(METRICS_FILE):
            if self._rows is not None:
                # JSON has no NaN: non-finite numbers are written as null.
                finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
                row = {"env_steps": env_steps, "seconds": round(seconds, 3), **finite}
                self._rows.write(json.dumps(row) + "\n")
                self._rows.flush()
        with self._ignoring_errors("TensorBoard"):
            if self._tensorboard is not None:
                # An evaluation ends later than its policy was trained: it is written at the policy's step.
                scores = {name: value for name, value in values.items() if name.startswith("eval/")}
                if scores:
                    self._tensorboard.row(int(scores["eval/env_steps"]), scores)
                self._tensorboard.row(env_steps, {n: value for n, value in values.items() if n not in scores})
        with self._ignoring_errors("Weights & Biases"):
            if self._wandb is not None:
                self._wandb.row(env_steps, seconds, values)
        return values

    def keep_episodes(self, count: int | None, env_steps: int) -> None:
        """Open episodes.csv once; episodes beyond `count` are dropped (None: beyond `env_steps`). No-op later on.

        A file of an earlier launch is shortened also if no more episodes are written.
        """
        if self._episodes_kept:
            return
        self._episodes_kept = True
        wanted = self.config.log.episodes
        with self._ignoring_errors(EPISODES_FILE):
            if wanted or (self.run_dir / EPISODES_FILE).exists():
                names = self.config.env.options.info_keys
                self._episodes = EpisodeFile(self.run_dir, names if wanted else (), count, env_steps)
            if not wanted and self._episodes is not None:
                self._episodes.close()
                self._episodes = None

    def episodes(self, episodes: Sequence[EpisodeLine]) -> None:
        """Write complete episodes to episodes.csv, if that is wanted."""
        with self._ignoring_errors(EPISODES_FILE):
            if self._episodes is not None:
                self._episodes.add(episodes)

    def console(self, snapshot: Snapshot) -> None:
        """Show the newest snapshot on the console."""
        with self._ignoring_errors("console"):
            self._console.show(snapshot)

    def log(self, line: str, echo: bool = True) -> None:
        """Write one event with its date to log.txt and, if `echo`, its first line to the console."""
        with self._ignoring_errors("log.txt"):
            if self._log_file is not None:
                self._log_file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
                self._log_file.flush()
        if echo:
            self.echo(line.partition("\n")[0])

    def echo(self, text: str) -> None:
        """Show lines on the console only."""
        with self._ignoring_errors("console"):
            self._console.log(text)

    def status(self, fields: Mapping[str, Any], folder: int) -> None:
        """Replace status.json atomically. folder: descriptor of the run's folder; its path may lead to another run."""
        with self._ignoring_errors("status.json"):
            replace_text_in(folder, "status.json", json.dumps(dict(fields), indent=1) + "\n")

    def close(self) -> None:
        """Flush and close everything; safe to call twice."""
        with self._ignoring_errors("console"):
            self._console.close()
        if self._console.left_out and self._log_file is not None:
            self.log(f"the console was not read: {self._console.left_out:,} lines are missing there", echo=False)
        self._close_files()
        with self._ignoring_errors("Weights & Biases"):
            if self._wandb is not None:
                self._wandb.close()
        self._wandb = None

    def _close_files(self) -> None:
        parts: dict[str, Any] = {METRICS_FILE: self._rows, EPISODES_FILE: self._episodes}
        parts |= {"TensorBoard": self._tensorboard, "log.txt": self._log_file}
        for name, part in parts.items():
            with self._ignoring_errors(name):
                if part is not None:
                    part.close()
        self._rows = self._tensorboard = self._log_file = self._episodes = None

    @contextlib.contextmanager
    def _ignoring_errors(self, output: str) -> Iterator[None]:
        """Report the first exception of an output and ignore the others."""
        try:
            yield
        except Exception as error:
            if output not in self._warned:
                self._warned.add(output)
                with contextlib.suppress(Exception):
                    self._console.warn(f"warning: {output} cannot be written: {error}; training continues")


class TensorBoard:
    """One TensorBoard event file per launch.

    On resume the file begins with a START event at the step after the checkpoint: TensorBoard then drops later events
    of earlier files, so that it shows one increasing curve.
    """

    def __init__(self, folder: Path, resume_env_steps: int | None, append: bool = False) -> None:
        """append: go on in the newest file of the folder, and drop nothing; `resume_env_steps` is not used then."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        if append and (file := _newest_event_file(folder)) is not None:
            self._writer = RecordWriter(file)
            return
        # TensorBoard reads files in the order of their names: the time in nanoseconds keeps launches in order.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter((folder / name).open("xb"))
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if (
            not append and len(list(folder.glob("events.*"))) > 1
        ):  # without a checkpoint, all of earlier launches is dropped
            begin = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            step = 0 if resume_env_steps is None else resume_env_steps + 1  # the step of the checkpoint is kept
            self._write(event_pb2.Event(wall_time=time.time(), step=step, session_log=begin))

    def row(self, env_steps: int, values: Mapping[str, float]) -> None:
        """Write all values of one step as one event."""
        tags = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        summary = self._summary.Summary(value=tags)
        self._write(self._event.Event(wall_time=time.time(), step=env_steps, summary=summary))

    def picture(self, tag: str, encoded: bytes, width: int, height: int, env_steps: int) -> None:
        """Write an encoded picture, which may be animated."""
        image = self._summary.Summary.Image(encoded_image_string=encoded, width=width, height=height, colorspace=3)
        summary = self._summary.Summary(value=[self._summary.Summary.Value(tag=tag, image=image)])
        self._write(self._event.Event(wall_time=time.time(), step=env_steps, summary=summary))

    def text(self, tag: str, markdown: str, env_steps: int) -> None:
        """Write a text, which TensorBoard shows as Markdown."""
        from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, string_val=[markdown.encode("utf-8", "replace")], tensor_shape=shape
        )
        value = self._summary.Summary.Value(
            tag=f"{tag}/text_summary", metadata=self._summary.SummaryMetadata(plugin_data=plugin), tensor=tensor
        )
        summary = self._summary.Summary(value=[value])
        self._write(self._event.Event(wall_time=time.time(), step=env_steps, summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _newest_event_file(folder: Path) -> BinaryIO | None:
    """The newest event file of a folder, locked and at its end; None if there is none that may be continued.

    That is none in which another process writes, and none whose last record is incomplete because its writer was
    killed: TensorBoard reads such a file up to there, and then the next one.
    """
    newest = max(folder.glob("events.out.tfevents.*"), default=None)
    if newest is None:
        return None
    file = os.fdopen(open_lock(newest), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _ends_with_a_record(file):
            return file
    except BlockingIOError:
        pass
    file.close()
    return None


def _ends_with_a_record(file: BinaryIO) -> bool:
    """Go from record to record to the end: each has its length in 8 bytes, and 4 bytes behind these and behind itself.

    Not of a file with more than MOST_RECORDS, as a run folder of a stranger may have.
    """
    end, at, count = file.seek(0, os.SEEK_END), 0, 0
    while at + 12 <= end and count < MOST_RECORDS:
        file.seek(at)
        at += int.from_bytes(file.read(8), "little") + 16
        count += 1
    file.seek(0, os.SEEK_END)
    return at == end > 0


class ProgressOutput:
    """Progress on stderr: a live panel on a terminal, otherwise one line every `every_seconds`."""

    def __init__(self, every_seconds: float, quiet: bool) -> None:
        self.every_seconds, self.quiet = every_seconds, quiet
        self._stream = console_stream(sys.stderr)
        self._next = 0.0
        self._hidden = self._left_out = 0  # events that came while the panel could not be drawn: since then, and in all
        self._panel: Any = None
        if not quiet and self.stream.isatty():
            from sfactory.monitor.panel.terminal import LivePanel, supports_panel  # imports rich

            if supports_panel(self.stream):
                self._panel = LivePanel(self.stream)
                self._panel.start()

    @property
    def stream(self) -> ConsoleStream:
        """The console: what is stderr at the moment, or what the panel is drawn on."""
        if self._panel is None and sys.stderr is not self._stream and sys.stderr is not self._stream.target:
            self._close_stream()
            self._left_out += self._stream.left_out
            self._stream = console_stream(sys.stderr)
        return self._stream

    @property
    def left_out(self) -> int:
        """Lines that were left out because the console was not read."""
        return self._left_out + self._stream.left_out

    def _close_stream(self) -> None:
        if self._stream is not sys.stderr:  # it belongs to this object
            self._stream.close()

    def show(self, snapshot: Snapshot) -> None:
        """Show the newest snapshot."""
        if self._panel is not None:
            self._panel.show(snapshot)
        elif snapshot.row and snapshot.state == "running" and not self.quiet and time.monotonic() >= self._next:
            self._next = time.monotonic() + self.every_seconds
            self.warn(snapshot.line)

    def log(self, line: str) -> None:
        """Print one event; it stays on the screen."""
        if not self.quiet:
            self.warn(line)

    def warn(self, line: str) -> None:
        """Print one line, also if the output is quiet."""
        line = printable(line)
        if self._panel is None:
            print(line, file=self.stream, flush=True)
        elif self.stream.late:
            self._hidden += 1
            self._left_out += 1
        else:
            hidden, self._hidden = self._hidden, 0
            self._panel.log(f"{left_out_note(hidden)}\n{line}" if hidden else line)

    def close(self) -> None:
        if self._panel is not None:
            self._panel.stop()
            self._panel = None
        self._close_stream()


def drop_rows_after(run_dir: Path, env_steps: int) -> int:
    """Remove the rows of metrics.jsonl after `env_steps`, and incomplete lines; return the last step kept, or -1.

    An evaluation that waits in the checkpoint gets a row between the last one and the checkpoint.
    """
    try:
        with open_to_read(run_dir / METRICS_FILE) as file:  # an error here must not empty the file
            lines = list(lines_of(file))
    except FileNotFoundError:
        return -1
    kept, last = [], -1
    for line in lines:
        row = parse_row(line)
        if row is not None and row["env_steps"] <= env_steps:
            kept.append(line.rstrip("\r\n") + "\n")
            last = max(last, row["env_steps"])
    replace_text(run_dir / METRICS_FILE, "".join(kept))
    return last


def last_evaluated(run_dir: Path) -> int:
    """env_steps of the policy of the last evaluation in metrics.jsonl; 0 if there is none."""
    return max((int(row["eval/env_steps"]) for row in read_rows(run_dir) if row.get("eval/env_steps")), default=0)


def machine_load() -> dict[str, float]:
    """CPU and memory use of the machine in percent; CPU since the last call (0 at the first)."""
    import psutil

    return {"system/cpu": psutil.cpu_percent(None), "system/memory": psutil.virtual_memory().percent}
