"""Lines of styled text, cut and filled to a width. Independent of training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

Piece = tuple[str, str]
Line = list[Piece]

LABEL = 11
DIM, NUMBER, ACCENT, GOOD, WARN, BAD = "bright_black", "bold", "cyan", "green", "yellow", "bold red"
BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = str.maketrans("╭╮╰╯─━╸│▁▂▃▄▅▆▇█▲▼·…■□", "++++-=-|...:::##^v-.#.")
"""Replacements for terminals without Unicode, one character each."""


def label(word: str, style: str = DIM) -> Line:
    return [(f"{word:{LABEL}}", style)]


def entry(name: str, fields: Sequence[Line], width: int) -> Line:
    """A label and as many fields as fit in `width`."""
    line, used = label(name), LABEL
    for number, pieces in enumerate(fields):
        gap = 3 if number else 0
        size = gap + sum(len(text) for text, _ in pieces)
        if used + size > width and number:
            break
        line += [(" " * gap, ""), *pieces]
        used += size
    return line


def bar(share: float, width: int, style: str) -> Line:
    """Horizontal bar: thick for the share, thin for the rest."""
    halves = round(min(max(share, 0.0), 1.0) * 2 * width)
    full, half = divmod(halves, 2)
    return [("━" * full + "╸" * half, style), ("─" * (width - full - half), DIM)]


def fit(line: Line, width: int) -> Line:
    """Cut or fill a line to exactly `width` cells. Wide characters take two."""
    from rich.cells import cell_len, set_cell_size

    fitted: Line = []
    for text, style in line:
        size = cell_len(text)
        if size > width:
            text, size = set_cell_size(text, width), width
        fitted.append((text, style))
        width -= size
    return [*fitted, (" " * width, "")]


def border(corners: str, left: Line, right: Line, width: int) -> Line:
    """Horizontal border with text at both ends; the right text is left out first where both do not fit."""
    from rich.cells import cell_len

    def size(line: Line) -> int:
        return sum(cell_len(text) for text, _ in line)

    room = width - 4
    left = [("─ ", DIM), *left, (" ", "")] if left else []
    right = [(" ", ""), *right, (" ─", DIM)] if right and size(left) + size(right) + 6 <= room else []
    left = left if size(left) <= room else fit(left, room)[:-1]
    rule = "─" * (width - 2 - size(left) - size(right))
    return [(corners[0], DIM), *left, (rule, DIM), *right, (corners[1], DIM)]


def stack(blocks: Sequence[list[Line]], gap: list[Line]) -> list[Line]:
    stacked: list[Line] = []
    for block in filter(None, blocks):
        stacked += gap + block if stacked else block
    return stacked


def beside(columns: Sequence[list[Line]], widths: Sequence[int]) -> list[Line]:
    """Join columns side by side."""
    lines: list[Line] = []
    for number in range(max(map(len, columns))):
        line: Line = []
        for column, width in zip(columns, widths, strict=True):
            line += [(" │ ", DIM)] if line else []
            line += fit(column[number] if number < len(column) else [], width)
        lines.append(line)
    return lines


def plain(text: str) -> str:
    """Replace characters that are not printable: a message must not move the cursor."""
    return "".join(c if c.isprintable() else " " for c in text)


def chart(points: Sequence[tuple[float, float]], width: int, rows: int) -> list[Line]:
    """Filled curve of value over steps, with the highest and the lowest value on its left."""
    columns = width - LABEL
    if len(points) < 2 or columns < 8:
        return []
    steps, values = np.array(points).T
    curve = np.interp(np.linspace(steps[0], steps[-1], columns), steps, values)
    low, high = float(curve.min()), float(curve.max())
    level = (curve - low) / (high - low) if high > low else np.full(columns, 0.5)
    eighths = 1 + np.round(level * (8 * rows - 1)).astype(int)
    lines: list[Line] = []
    for row in range(rows):
        left = [height - 8 * (rows - 1 - row) for height in eighths.tolist()]
        runs: Line = []
        # Full cells have the same background: some fonts leave a gap between lines.
        for style, cells in groupby(left, lambda height: f"{GOOD} on {GOOD}" if height >= 8 else GOOD):
            runs.append(("".join(BLOCKS[min(max(height, 0), 8)] for height in cells), style))
        mark = f"{high:.4g}" if row == 0 and rows > 1 else f"{low:.4g}" if row == rows - 1 and rows > 1 else ""
        lines.append([(f"{mark:>{LABEL - 1}} ", DIM), *runs])
    return lines
