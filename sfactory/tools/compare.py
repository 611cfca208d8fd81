"""Format a comparison of runs (`sfactory.tools.comparison`) as text tables; words and numbers of its pictures, too."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from sfactory.monitor.format import human, printable
from sfactory.tools.comparison import AXES, UNITS, Comparison, ComparisonPanel, position


def text(found: Comparison, columns: int = 0) -> str:
    """Return all tables and notes. columns: of the terminal; 0: lines may have any length."""
    notes = "\n".join(_wrapped(note, columns) for note in found.notes)
    return printable("\n\n".join([*(table(panel, columns) for panel in found.panels), *([notes] if notes else [])]))


def table(panel: ComparisonPanel, columns: int = 0) -> str:
    """Return one panel as a table: a row per group. In a narrow terminal its right part is below the left one."""
    lines, rows = [_wrapped(f"{panel.title}: {heading(panel)}", columns)], cells(panel)
    label, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    blocks, used = [list[int]()], 0
    for i, width in enumerate(widths, start=1):
        if columns and blocks[-1] and 2 + label + used + 2 + width > columns:
            blocks.append([])
            used = 0
        blocks[-1].append(i)
        used += 2 + width
    for block in blocks:
        for line in rows:
            numbers = (line[i].rjust(widths[i - 1]) for i in block)
            lines.append(f"  {line[0].ljust(label)}  {'  '.join(numbers)}")
    return "\n".join(lines)


def _wrapped(sentence: str, columns: int) -> str:
    return textwrap.fill(sentence, columns, break_on_hyphens=False, subsequent_indent="  ") if columns else sentence


def heading(panel: ComparisonPanel) -> str:
    """What is compared, and where."""
    where = f"{panel.end:,.0f} {panel.steps}" if panel.by == "env_steps" else position(panel.end, panel.by)
    return f"{panel.quantity} at {where}" + (f" ({panel.meaning})" if panel.meaning else "")


def cells(panel: ComparisonPanel) -> list[list[str]]:
    """Return the head of a panel's table and a row per group."""
    rows = [panel.row(label) for label, _ in panel.groups]
    other = "seconds" if panel.by == "env_steps" else panel.steps
    first = rows[0]["label"]
    head = ["", "runs", "IQM", "95 % interval", "median", "min", "max"]
    head += [other] if len(panel.groups[0][1]) == 1 else []
    head += [f"P({chance_of(panel)})"] if len(rows) > 1 else []
    lines = [head]
    for row in rows:
        line = [row["label"] or "all runs", str(len(row["runs"])), _short(row["iqm"])]
        line.append(" to ".join(map(_short, row["interval"])) if row["interval"] else "-")
        line += [_short(row[name]) for name in ("median", "min", "max")]
        if other in head:
            value = row[UNITS[AXES[1 - AXES.index(panel.by)]]]
            line.append(human(value) if other == panel.steps else position(value, "seconds").removesuffix(" s"))
        if row["improvement"]:
            chance, low, high = row["improvement"]
            interval = "" if low is None else f" ({100 * low:.0f} to {100 * high:.0f})"
            line.append(f"{100 * chance:.0f} %{interval}")
        elif len(rows) > 1:
            line.append("" if row["label"] != first else "-")
        lines.append(line)
    return lines


def axis_label(panel: ComparisonPanel, axis: str) -> str:
    """Name of an axis. Steps of a single agent are those of its environment."""
    if axis == "seconds":
        return "training time"
    return "env steps" if panel.steps == "steps" else panel.steps


def time_format(end: float) -> Callable[[float], str]:
    """Return the format of a time axis, in a unit that suits its end."""
    unit, scale = ("h", 3600.0) if end > 2 * 3600 else ("min", 60.0) if end > 180 else ("s", 1.0)
    return lambda value: f"{value / scale:g} {unit}"


def chance_of(panel: ComparisonPanel) -> str:
    """What a higher value is, in a word."""
    return "improvement" if panel.is_score else "higher"


def _short(value: float) -> str:
    """Format a score with four significant digits, without an exponent for large scores."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
