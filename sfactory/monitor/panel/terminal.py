"""The panel on a terminal: in place, below whatever else is printed, and drawn anew every half second, so that clocks
tick and a window that was resized is filled again."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType

from sfactory.monitor.panel.picture import render
from sfactory.monitor.panel.snapshot import Snapshot

PER_SECOND = 2.0  # pictures; one takes a millisecond


def capable(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a panel can be drawn there: a terminal that can move its cursor."""
    return stream.isatty() and environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Panel(Live):
    """The newest snapshot, live. `start` and `stop`; the last picture stays on the screen."""

    def __init__(self, stream: TextIO) -> None:
        console = Console(file=stream, highlight=False)
        # The Linux console has boxes, but not the eighths of a block.
        self._ascii = console.options.ascii_only or os.environ.get("TERM") == "linux"
        self._shown: tuple[Snapshot, float] | None = None  # and when it came; one value, as a thread draws
        self._drawn: tuple[int, int] = (0, 0)  # columns of the terminal and lines of the panel when last drawn
        super().__init__(self, console=console, refresh_per_second=PER_SECOND, redirect_stdout=False)

    def show(self, snapshot: Snapshot) -> None:
        """From now on this one."""
        self._shown = snapshot, time.monotonic()

    def log(self, line: str) -> None:
        """A line above the panel; it stays."""
        self.console.print(line, markup=False, highlight=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._shown is not None:
            snapshot, came = self._shown
            now = replace(snapshot, since=snapshot.since + time.monotonic() - came)
            text = render(now, options.max_width, options.size.height - 1, self._ascii)
            drawn = text.split("\n")
            self._drawn = (drawn[0].cell_len, len(drawn)) if drawn else (0, 0)
            yield text

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is drawn, after what was drawn is wiped. A terminal that became narrower has folded every line of it:
        Live counts unfolded ones, the rest is wiped here."""
        columns, lines = self._drawn
        now = self.console.width
        folded = lines * (ceil(columns / now) - 1) if 0 < now < columns else 0
        wipe: Any = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        self._drawn = (now, lines)
        return [Control(*(wipe * folded)), *super().process_renderables(renderables)]
