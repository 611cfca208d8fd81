"""The output of a worker stays small, with its beginning and its newest part, and the last line is cheap to read."""

import os
import re
import subprocess
import sys
import time

import pytest

from sfactory.supervisor import output_file as module
from sfactory.supervisor.output_file import MAX_BYTES, OutputFile


def lines(first, last):
    return b"".join(b"line %09d\n" % number for number in range(first, last))


def test_trim_leaves_a_small_file_as_it_is(tmp_path):
    path = tmp_path / "sampler-0.txt"
    OutputFile(path).trim()  # there is none yet
    path.write_bytes(lines(0, 1000))
    OutputFile(path).trim()
    assert path.read_bytes() == lines(0, 1000)


def test_trim_keeps_whole_lines_of_the_beginning_and_the_newest_part_however_often(tmp_path):
    path = tmp_path / "sampler-0.txt"
    output, written = OutputFile(path), 0
    for _ in range(4):
        with path.open("ab") as file:
            file.write(lines(written, written + 800_000))
        written += 800_000
        output.trim()
        kept = path.read_bytes().splitlines()
        assert path.stat().st_size < MAX_BYTES * 0.6
        (gap,) = (index for index, line in enumerate(kept) if line.startswith(b"[left out here: "))
        before, after = kept[: gap - 1], kept[gap + 1 :]
        assert before == lines(0, len(before)).splitlines()
        assert after == lines(written - len(after), written).splitlines()
        assert len(before) > 60_000
        assert len(after) > 250_000
    left_out = (written - len(before) - len(after)) * len(lines(0, 1))
    told = re.fullmatch(rb"\[left out here: (\d+) bytes; the file is limited to 10000000\]", kept[gap])
    assert told, kept[gap]
    assert 0 <= int(told[1]) - left_out < 4 * 80, "with the lines that said so before"


def test_trim_bounds_a_file_while_a_process_writes_to_it_in_python_and_in_c(tmp_path):
    path = tmp_path / "sampler-0.txt"
    path.touch()
    code = (
        "import os, time\nend = time.monotonic() + 0.7\nline = 'x' * 999 + '\\n'\n"
        "while time.monotonic() < end:\n    print(line * 20, flush=True); os.write(2, line.encode() * 20)\n"
        "print('the last line')\n"
    )
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=file)
    output, left_out = OutputFile(path), 0
    while process.poll() is None:
        time.sleep(0.02)
        output.trim()
        left_out = output.left_out
    output.trim()
    os.close(file)
    assert left_out > MAX_BYTES, "it wrote more than fits"
    assert path.stat().st_size <= MAX_BYTES
    assert output.last_line() == "the last line"


def test_last_line_reads_the_end_of_a_large_file_only(tmp_path, monkeypatch):
    path = tmp_path / "sampler-0.txt"
    output = OutputFile(path)
    path.write_bytes(lines(0, 500_000) + b"ValueError: no\n\n")
    read = []

    class Counting:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def seek(self, *where):
            return self.file.seek(*where)

        def read(self):
            read.append(self.file.read())
            return read[-1]

    monkeypatch.setattr(module, "open", lambda *args: Counting(open(*args)), raising=False)  # noqa: SIM115
    assert output.last_line() == "ValueError: no"
    assert sum(map(len, read)) <= 8192


@pytest.mark.parametrize("size", [100, 5_000, 3_000_000])
def test_last_line_is_shortened_and_says_so(tmp_path, size):
    path = tmp_path / "learner.txt"
    path.write_text("RuntimeError: of an earlier generation\n")
    output = OutputFile(path)
    with path.open("a") as file:
        file.write(f"Traceback\nRuntimeError: {'x' * size} at last\n")
    line = output.last_line()
    assert line.endswith("xxx at last")
    assert len(line) < 1000
    assert line.startswith("... xxx" if size > 8192 else "RuntimeError: xxx")
    assert ("characters) ..." in line) == (size > 1000)


def test_last_line_is_never_that_of_an_earlier_generation(tmp_path):
    path = tmp_path / "sampler-0.txt"
    assert OutputFile(path).last_line() == ""
    path.write_text("RuntimeError: of the first life\n")
    second = OutputFile(path)
    assert second.last_line() == ""
    with path.open("ab") as file:
        file.write(b"RuntimeError: of the second life\n")
    assert second.last_line() == "RuntimeError: of the second life"
    third = OutputFile(path)
    with path.open("ab") as file:
        file.write(lines(0, 800_000))
    third.trim()
    assert third.last_line() == "line 000799999"
    fourth = OutputFile(path)
    fourth.trim()
    assert fourth.last_line() == ""


def test_last_line_is_found_after_the_output_of_an_earlier_generation_was_left_out(tmp_path):
    path = tmp_path / "sampler-0.txt"
    path.write_bytes(lines(0, 600_000))
    output = OutputFile(path)
    with path.open("ab") as file:
        file.write(lines(0, 100_000) + b"ValueError: no\n")
    output.trim()
    assert output.last_line() == "ValueError: no"


class Busy(OutputFile):
    """The worker writes a line whenever the size is read."""

    number = 0

    def _size(self):
        if self.number < 4 and self.path.exists():
            with self.path.open("ab") as file:
                file.write(b"meanwhile %d\n" % self.number)
            self.number += 1
        return super()._size()


def test_trim_keeps_what_is_written_meanwhile(tmp_path):
    path = tmp_path / "sampler-0.txt"
    path.write_bytes(lines(0, 800_000))
    Busy(path).trim()
    assert path.read_bytes().splitlines()[-5:] == [b"line 000799999", *(b"meanwhile %d" % n for n in range(4))]


def test_trim_does_not_follow_a_link_out_of_the_run_folder(tmp_path):
    other, path = tmp_path / "other", tmp_path / "sampler-0.txt"
    other.write_bytes(bytes(MAX_BYTES + 1))
    path.symlink_to(other)
    OutputFile(path).trim()
    assert other.stat().st_size == MAX_BYTES + 1
