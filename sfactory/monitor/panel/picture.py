"""Render a snapshot: blocks in one, two or three columns, in a frame. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfactory.monitor.panel import blocks
from sfactory.monitor.panel.lines import (
    ACCENT,
    ASCII,
    BAD,
    DIM,
    GOOD,
    WARN,
    Line,
    beside,
    border,
    fit,
    label,
    plain,
    stack,
)
from sfactory.monitor.panel.snapshot import Snapshot

if TYPE_CHECKING:
    from rich.text import Text

MIN_WIDTH = 24  # columns; narrower terminals get one line without a frame
TWO_COLUMNS, THREE_COLUMNS = 110, 165  # widths from which there are two and three columns
MAX_WIDTH = 220
LEAVE_OUT = (
    "losses",
    "spaces",
    "tall chart",
    "machine",
    "stages",
    "queue",
    "fault lines",
    "staleness",
    "chart",
    "bars",
)
"""Order in which parts are left out to fit the height."""


def render(snapshot: Snapshot, width: int, height: int = 1000, ascii_only: bool = False) -> Text:
    """Draw the panel in at most `width` columns and `height` lines; one line where a frame does not fit."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="crop", end="")
    for number, line in enumerate(_lines(snapshot, min(width, MAX_WIDTH), height)):
        text.append("\n" if number else "")
        for words, style in line:
            text.append(words.translate(ASCII) if ascii_only else words, style)
    return text


def _lines(s: Snapshot, width: int, height: int) -> list[Line]:
    """Frame and body; parts are left out until the body fits the height."""
    if width < MIN_WIDTH or height < 5:
        return [fit(blocks.one_line(s), width)][: max(height, 0)]
    for count in range(len(LEAVE_OUT) + 1):
        body = _body(s, width - 4, set(LEAVE_OUT[:count]))
        if len(body) + 2 <= height:
            break
    edge = ("│", DIM)
    framed = [[edge, (" ", ""), *fit(line, width - 4), (" ", ""), edge] for line in body[: height - 2]]
    title: Line = [("sfactory", f"bold {ACCENT}"), (" · ", DIM), (plain(s.env), "bold")]
    state_styles = {"running": DIM, "finished": GOOD}
    kind = "".join(f" · {word}" for word in (s.mode, s.device, plain(s.protocol)) if word)
    footer: Line = [(plain(s.state), state_styles.get(s.state, WARN)), (kind, DIM)]
    return [border("╭╮", title, [(plain(s.name), DIM)], width), *framed, border("╰╯", footer, [], width)]


def _body(s: Snapshot, width: int, without: set[str]) -> list[Line]:
    """Everything inside the frame."""
    columns = _columns(width)
    if not s.row:
        return blocks.progress(s, width) + [[*label(""), (plain(text), BAD)] for text in s.faults[-2:]]
    gap: list[Line] = [] if "spaces" in without else [[]]
    chart_rows = 0 if "chart" in without else 1 if "tall chart" in without else 3
    head = blocks.progress(s, columns[0])
    losses = [] if "losses" in without else blocks.losses(s, columns[0])
    pipe = blocks.pipeline(s, columns[-1], "bars" not in without, "stages" not in without)
    pipe += [] if "queue" in without else blocks.queue(s, columns[-1])
    stale = [] if "staleness" in without else blocks.staleness(s, columns[-1])
    health = blocks.health(s, columns[0 if len(columns) == 3 else -1], "machine" not in without)
    fault_lines = [] if "fault lines" in without else [[*label(""), (plain(text), BAD)] for text in s.faults[-2:]]
    if len(columns) == 1:
        return stack([head, blocks.learning(s, width, chart_rows), pipe, stale, losses, health + fault_lines], gap)
    if len(columns) == 2:
        second = stack([pipe, stale, health], gap)
        room = len(second) - len(stack([head, losses, [[]]], gap)) - len(gap)
        learning = blocks.learning(s, columns[0], max(chart_rows, room))
        return beside([stack([head, learning, losses], gap), second], columns) + fault_lines
    first, third = stack([head, losses, health], gap), stack([pipe, stale], gap)
    learning = blocks.learning(s, columns[1], max(chart_rows, len(first) - 1, len(third) - 1))
    return beside([first, learning, third], columns) + fault_lines


def _columns(width: int) -> list[int]:
    """Widths of the columns, with three characters between them."""
    count = 1 if width + 4 < TWO_COLUMNS else 2 if width + 4 < THREE_COLUMNS else 3
    each, rest = divmod(width - 3 * (count - 1), count)
    return [each + (number < rest) for number in range(count)]
