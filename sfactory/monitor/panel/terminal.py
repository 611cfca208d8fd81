"""Live panel on a terminal, below all other output.

It is drawn again every half second, so that times advance and a resized window is filled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType

from sfactory.monitor.console import ConsoleStream
from sfactory.monitor.panel.picture import render
from sfactory.monitor.panel.snapshot import Snapshot

PICTURES_PER_SECOND = 2.0  # one takes a millisecond


def supports_panel(stream: ConsoleStream, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the stream is a terminal that can move its cursor."""
    return stream.isatty() and environ.get("TERM", "dumb") not in ("dumb", "unknown")


class LivePanel(Live):
    """Draws the newest snapshot between `start` and `stop`; the last picture stays on the screen."""

    def __init__(self, stream: ConsoleStream) -> None:
        self._stream = stream
        console = Console(file=cast(TextIO, stream), highlight=False)
        # The font of the Linux console has boxes, but no eighths of a block.
        self._ascii = console.options.ascii_only or os.environ.get("TERM") == "linux"
        self._newest: tuple[Snapshot, float] | None = None  # with its time; one attribute, because a thread draws
        self._drawn: tuple[int, int] = (0, 0)  # columns of the terminal and lines of the panel when last drawn
        super().__init__(self, console=console, refresh_per_second=PICTURES_PER_SECOND, redirect_stdout=False)

    def show(self, snapshot: Snapshot) -> None:
        """Draw this snapshot from now on."""
        self._newest = snapshot, time.monotonic()

    def refresh(self) -> None:
        """Draw the panel, unless the terminal is not read."""
        if not self._stream.late:
            super().refresh()

    def log(self, line: str) -> None:
        """Print a line above the panel; it stays on the screen."""
        self.console.print(line, markup=False, highlight=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._newest is not None:
            snapshot, received = self._newest
            now = replace(snapshot, since=snapshot.since + time.monotonic() - received)
            text = render(now, options.max_width, options.size.height - 1, self._ascii)
            drawn = text.split("\n")
            self._drawn = (drawn[0].cell_len, len(drawn)) if drawn else (0, 0)
            yield text

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Erase the previous picture before drawing the next.

        A terminal that became narrower wraps every line. `Live` erases the number of unwrapped lines; the rest is
        erased here.
        """
        columns, lines = self._drawn
        width = self.console.width
        wrapped = lines * (ceil(columns / width) - 1) if 0 < width < columns else 0
        erase: Any = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
        self._drawn = (width, lines)
        return [Control(*(erase * wrapped)), *super().process_renderables(renderables)]
