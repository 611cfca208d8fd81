"""The file that a worker's stdout and stderr go to, kept small.

The worker appends to it directly, so that nothing is lost when it is killed and no process has to read what it writes.
When the file exceeds MAX_BYTES, its beginning and its newest part are kept.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sfactory.errors import LONGEST_LINE, shortened

MAX_BYTES = 10_000_000
FIRST_BYTES, LAST_BYTES = 1_000_000, 4_000_000  # kept
LINE_BYTES = 8192  # read for the last line
_LEFT_OUT = b"\n[left out here: "
_PASSES = 5  # over what is written meanwhile


class OutputFile:
    """Output of one generation of a worker; generations and launches append to one file."""

    def __init__(self, path: Path) -> None:
        self.path, self.left_out = path, 0
        self._start = self._size()  # what is before it was written by an earlier generation

    def trim(self) -> None:
        """Leave out the middle of a file that has become too large. Cheap otherwise; never raises OSError.

        The newest part is moved to the front and the file is cut behind it. Only what is written in the microseconds
        before the cut is lost.
        """
        if self._size() <= MAX_BYTES:
            return
        with contextlib.suppress(OSError), open(self.path, "r+b", buffering=0) as file:
            first = file.read(FIRST_BYTES + len(_LEFT_OUT)).partition(_LEFT_OUT)[0]  # what is kept already
            first = first[: first.rfind(b"\n", 0, FIRST_BYTES) + 1 or FIRST_BYTES]
            size = self._size()
            file.seek(size - LAST_BYTES)
            newest = file.read(LAST_BYTES)
            newest = newest[newest.find(b"\n") + 1 :]
            self.left_out += size - len(first) - len(newest)
            file.seek(len(first))
            file.write(_LEFT_OUT + b"%d bytes; the file is limited to %d]\n" % (self.left_out, MAX_BYTES))
            moved = file.tell() - (size - len(newest))
            file.write(newest)
            end, copied = file.tell(), size
            for _ in range(_PASSES):
                if (size := self._size()) == copied:
                    break
                file.seek(copied)
                meanwhile = file.read(min(size - copied, LAST_BYTES))
                file.seek(end)
                file.write(meanwhile)
                end, copied = file.tell(), copied + len(meanwhile)
            file.truncate(end)
            self._start = max(self._start + moved, 0)

    def last_line(self) -> str:
        """Last line that this generation wrote, shortened if it is long; an empty string if there is none."""
        with contextlib.suppress(OSError), open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(self._start, size - LINE_BYTES)
            file.seek(begin)
            lines = file.read().decode(errors="replace").strip().splitlines()
            cut = len(lines) == 1 and begin > self._start  # the line began before what was read
            return ("... " if cut else "") + shortened(lines[-1].strip(), LONGEST_LINE) if lines else ""
        return ""

    def _size(self) -> int:
        try:
            return os.lstat(self.path).st_size  # never of a file that a link in somebody else's run folder leads to
        except OSError:
            return 0
