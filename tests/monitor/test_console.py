"""The console and the results: writes never fail, a reader that does not read is not waited for."""

import io
import os
import sys
import threading
import time

from sfactory.config import Config, Env
from sfactory.monitor import console
from sfactory.monitor.console import ConsoleStream, UnfailingFile, unfailing
from sfactory.monitor.writers import Writers


class Gate(io.StringIO):
    """A stream whose writes wait until `open` is set."""

    def __init__(self):
        super().__init__()
        self.open = threading.Event()

    def write(self, text):
        self.open.wait(30)
        return super().write(text)


def test_console_stream_leaves_the_oldest_lines_out_and_says_so_in_their_place(monkeypatch):
    monkeypatch.setattr(console, "MAX_CHARS", 100)
    gate = Gate()
    stream = ConsoleStream(gate)
    begun = time.monotonic()
    for number in range(1000):
        print(f"line {number}", file=stream, flush=True)
    assert time.monotonic() - begun < 20, "only the first line is waited for"
    assert stream.late
    gate.open.set()
    stream.close(30)
    lines = gate.getvalue().splitlines()
    assert (lines[0], lines[-1]) == ("line 0", "line 999")
    assert lines[1] == f"[{stream.left_out} lines left out here: the console was not read]"
    assert len(lines) - 1 + stream.left_out == 1000
    assert not stream.late


def test_console_stream_writes_at_once_after_it_was_closed():
    stream = ConsoleStream(target := io.StringIO())
    print("before", file=stream)
    stream.close()
    print("after", file=stream)
    assert target.getvalue() == "before\nafter\n"


def test_console_stream_takes_no_lock_after_it_was_closed():
    """At exit Python ends daemon threads anywhere, also between taking a lock and giving it back, and flushes then."""
    stream = ConsoleStream(target := io.StringIO())
    print("before", file=stream)
    stream.close()

    def last_words():
        print("after", file=stream, flush=True)
        stream.close()
        ended.set()

    ended = threading.Event()
    with stream._changed:  # as if its thread had been ended while it held the lock
        threading.Thread(target=last_words, daemon=True).start()
        assert ended.wait(10)
    assert target.getvalue() == "before\nafter\n"


def test_console_stream_of_no_stream_drops_everything():
    stream = ConsoleStream(None)
    print("text", file=stream, flush=True)
    assert not stream.isatty()


def test_unfailing_file_drops_what_cannot_be_written_and_reports_the_first_error():
    errors = []
    with open("/dev/full", "wb", buffering=0) as full:
        file = UnfailingFile(full.fileno(), errors.append)
        assert [file.write(b"text") for _ in range(3)] == [4, 4, 4]
    assert [error.strerror for error in errors] == ["No space left on device"]


def test_console_stream_knows_that_its_reader_is_gone():
    reader, writer = os.pipe()
    with open(writer, "w") as pipe:
        stream = ConsoleStream(pipe)
        print("text", file=stream, flush=True)
        assert not stream.gone
        os.close(reader)
        print("text", file=stream, flush=True)
        assert stream.gone
        stream.close()


def test_unfailing_stream_writes_all_to_a_pipe_that_does_not_block():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text, found = "ü" * 200_000, []
    thread = threading.Thread(target=lambda: found.append(io.FileIO(reader).read()))
    with open(writer, "w", encoding="ascii") as pipe:
        stream = unfailing(pipe, buffered=True)
        thread.start()
        stream.write(text)
        stream.flush()
    thread.join()
    assert found[0] == rb"\xfc" * 200_000


def test_writers_log_how_many_lines_the_console_left_out_and_every_event(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "MAX_CHARS", 100)
    gate = Gate()
    monkeypatch.setattr(sys, "stderr", gate)
    writers = Writers(tmp_path, Config(env=Env("gymnasium/CartPole-v1")), None)
    for number in range(50):
        writers.log(f"event {number}")
    gate.open.set()
    writers.close()
    log = (tmp_path / "log.txt").read_text()
    assert log.count(" event ") == 50
    left_out = 50 - gate.getvalue().count("event")
    assert left_out > 0
    assert f"the console was not read: {left_out} lines are missing there" in log
