"""Draw who took over whose policy in a population, as inline SVG: a row per member, a line per takeover."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sfactory.monitor.format import human
from sfactory.run.history import Record
from sfactory.run.reader import format_setting
from sfactory.tools import svg

ROW, TOP, LEFT, RIGHT, BOTTOM = 28, 16, 42, 16, 22
ROUND = 24
"""Pixels of a round, at least: closer points of a member cannot be told apart."""
BEND = 12
"""Pixels by which a takeover bends to the left for each row that it crosses, so that several can be told apart."""
TICK = 100
"""Pixels between two labels of the axis, about."""


def founders(members: int, records: Sequence[Record]) -> list[list[int]]:
    """For every member: the member whose first policy its own descends from, in each of its rounds and at the end."""
    now = list(range(members))
    found = [[member] for member in range(members)]
    for record in records:
        if record.source is not None:
            now[record.member] = now[record.source]
        found[record.member].append(now[record.member])
    return found


def lineage(members: int, records: Sequence[Record], space: int = svg.WIDE[0]) -> str:
    """Draw the lineage over env steps. A line has the color of the member whose first policy it descends from.

    space: pixels that a row of the page has. A drawing of many rounds is wider, and the reader scrolls to see all of
    it; the names of the members are then at both ends.
    """
    end = max((record.env_steps for record in records), default=0)
    if not end:
        return svg.no_data()
    needed, height = LEFT + max(record.round for record in records) * ROUND + RIGHT, TOP + members * ROW + BOTTOM
    scrolls = needed > space
    right = LEFT if scrolls else RIGHT
    width = needed - RIGHT + right if scrolls else space

    def x(steps: int) -> float:
        return LEFT + steps / end * (width - LEFT - right)

    def y(member: int) -> float:
        return TOP + member * ROW + ROW / 4

    parts = [
        f'<text x="{x(int(at)):.1f}" y="{height - 7}" text-anchor="middle">{escape(human(at))}</text>'
        for at in svg.ticks(0.0, float(end), max(1, width // TICK))
    ]
    origin = founders(members, records)
    for member in range(members):
        parts.append(f'<text x="{LEFT - 10}" y="{y(member) + 4:.1f}" text-anchor="end">m{member}</text>')
        if scrolls:
            parts.append(f'<text x="{width - LEFT + 10}" y="{y(member) + 4:.1f}">m{member}</text>')
        before = 0
        for number, record in enumerate(one for one in records if one.member == member):
            color = svg.css_class(origin[member][number])
            parts.append(f'<path class="{color} line" d="M{x(before):.1f} {y(member):.1f}H{x(record.env_steps):.1f}"/>')
            before = record.env_steps
    for record in records:
        if record.source is not None:
            color, title = svg.css_class(origin[record.member][record.round]), escape(sentence(record))
            start = f"{x(min(record.source_steps, end)):.1f} {y(record.source):.1f}"
            stop = f"{x(record.env_steps):.1f} {y(record.member):.1f}"
            bend = x(min(record.env_steps, record.source_steps)) - BEND * abs(record.member - record.source)
            middle = f"{max(bend, LEFT):.1f} {(y(record.member) + y(record.source)) / 2:.1f}"
            parts.append(
                f'<path class="{color} line takeover" d="M{start}Q{middle} {stop}"><title>{title}</title></path>'
            )
    for record in records:
        color, title = svg.css_class(origin[record.member][record.round]), escape(sentence(record))
        center = f'cx="{x(record.env_steps):.1f}" cy="{y(record.member):.1f}"'
        parts.append(f'<circle class="{color} bar" {center} r="4"><title>{title}</title></circle>')
    drawing = svg.element(parts, "lineage of the members", (width, height))
    return f'<div class="scroll"><div style="min-width:{width}px">{drawing}</div></div>' if scrolls else drawing


def sentence(record: Record) -> str:
    """A record in words."""
    score = "failed" if record.failed else "unknown" if record.score is None else svg.number(record.score)
    text = f"m{record.member} at {record.env_steps:,} steps: score {score}"
    if record.source is None:
        return text
    settings = ", ".join(format_setting(name, value) for name, value in record.next_settings.items())
    return f"{text}; takes over m{record.source} ({record.source_steps:,} steps), then {settings}"
