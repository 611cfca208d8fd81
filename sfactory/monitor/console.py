"""Streams for results and for the console that never fail, and a console that never blocks.

Where an output goes is not the run's business: a closed descriptor, a full disk, a reader that has exited or a terminal
that is gone must change neither the exit code nor the training. Errors of writing are dropped here, below the streams,
so that nothing above has to catch them.

A pipe or a terminal that is not read (Ctrl-S, `| less`) blocks the process that writes to it. `ConsoleStream` writes in
a thread, and leaves lines out when too many wait.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

PATIENCE_S = 0.1  # for text to be written, before the console counts as not read
CLOSE_S = 1.0  # the same, at the end
MAX_CHARS = 1 << 16  # that wait for a console that is not read
GONE = (errno.EPIPE, errno.EIO)
"""Errors after which no reader comes back: it has exited, or the terminal is closed."""


class UnfailingFile(io.FileIO):
    """An open descriptor whose writes always succeed; what cannot be written is dropped.

    on_error: called with the first error.
    """

    def __init__(self, fd: int, on_error: Callable[[OSError], object] | None = None) -> None:
        super().__init__(fd, "w", closefd=False)
        self.error: OSError | None = None
        self._on_error = on_error

    def write(self, data: Any) -> int:
        """Write all of it, or drop the rest."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            try:
                written = super().write(rest)
            except OSError as error:
                if self.error is None:
                    self.error = error
                    if self._on_error is not None:
                        self._on_error(error)
                return size
            if written is None:  # another process has made the descriptor non-blocking
                poll = select.poll()
                poll.register(self.fileno(), select.POLLOUT)
                poll.poll()
            else:
                rest = rest[written:]
        return size


def unfailing(
    stream: TextIO | None, buffered: bool = False, on_error: Callable[[OSError], object] | None = None
) -> TextIO:
    """The same stream, but no write fails, also not for characters that its encoding lacks.

    A stream that is no open descriptor (of a notebook or a test) is returned as it is. None, which is what Python has
    for a descriptor that was closed when it started, becomes a stream that drops everything.
    """
    if stream is None:
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        raw = UnfailingFile(stream.fileno(), on_error)
    except (OSError, ValueError):
        return stream
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if buffered else raw,  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=not buffered,
    )


def fill_closed_descriptors() -> None:
    """Open /dev/null as descriptors 0 to 2 where these are closed: no file or pipe may get their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


class ConsoleStream:
    """A text stream in front of another one that blocks for `PATIENCE_S` at most, and never fails.

    A thread writes. If text waits for longer than that, the console counts as `late` until all of it is written; of the
    text that waits meanwhile, the newest `MAX_CHARS` characters are kept.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.target, self._out = stream, unfailing(stream)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._line = ""  # the incomplete last line
        self._waiting: deque[str] = deque()
        self._writing = self._closed = False
        self._gap = 0  # lines that were left out before the oldest text that waits
        self.late = False
        self.left_out = 0  # lines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)  # encoding, fileno, isatty ...

    @property
    def gone(self) -> bool:
        """Whether the reader has exited."""
        error = getattr(getattr(self._out, "buffer", None), "error", None)
        return error is not None and error.errno in GONE

    def write(self, text: str) -> int:
        """Pass text on; whole lines at once."""
        if self._closed:
            self._write_late(text)
            return len(text)
        with self._changed:
            self._line += text
            if "\n" in text:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Wait until everything is written, unless the console is late."""
        if self._closed:  # no lock: the interpreter flushes last, and may have ended the thread while it held the lock
            return
        with self._changed:
            if self._line:
                self._put(self._line)
                self._line = ""
            if not self.late:
                self.late = not self._changed.wait_for(self._is_written, PATIENCE_S)

    def close(self, seconds: float = CLOSE_S) -> None:
        """Wait until everything is written and end the thread. Text that comes later is written at once."""
        if self._closed:
            return
        self.flush()
        with self._changed:
            self.late = not self._changed.wait_for(self._is_written, seconds)
            self._closed = True
            self._changed.notify_all()

    def _write_late(self, text: str) -> None:
        """Write what comes after the end, or drop it where text is waited for in vain."""
        if not self.late:
            _write(self._out, text)

    def _put(self, text: str) -> None:
        if self._closed:  # meanwhile, by another thread
            self._write_late(text)
            return
        self._waiting.append(text)
        while len(self._waiting) > 1 and sum(map(len, self._waiting)) > MAX_CHARS:
            lines = self._waiting.popleft().count("\n")
            self._gap += lines
            self.left_out += lines
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="console", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _is_written(self) -> bool:
        return not self._waiting and not self._writing

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                text, gap = self._waiting.popleft(), self._gap
                self._writing, self._gap = True, 0
            _write(self._out, f"{left_out_note(gap)}\n{text}" if gap else text)
            with self._changed:
                self._writing = False
                if not self._waiting:
                    self.late = False
                self._changed.notify_all()


def left_out_note(lines: int) -> str:
    """What stands in the place of lines that were left out."""
    return f"[{lines:,} lines left out here: the console was not read]"


def console_stream(stream: TextIO | None) -> ConsoleStream:
    """The stream itself, or a console in front of it where a program has a stderr of its own."""
    return stream if isinstance(stream, ConsoleStream) else ConsoleStream(stream)


def _write(stream: TextIO, text: str) -> None:
    """Write to a stream of any kind: one that a program has put in the place of stderr may be closed, or fail."""
    with contextlib.suppress(Exception):
        stream.write(text)
        stream.flush()
