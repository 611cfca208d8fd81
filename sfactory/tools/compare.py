"""Format a comparison of runs (`sfactory.tools.comparison`) as text tables."""

from __future__ import annotations

from sfactory.monitor.format import human, printable
from sfactory.tools.comparison import AXES, UNITS, Comparison, ComparisonPanel, position


def text(found: Comparison) -> str:
    """Return all tables and notes."""
    return printable("\n\n".join([*map(table, found.panels), *(["\n".join(found.notes)] if found.notes else [])]))


def table(panel: ComparisonPanel) -> str:
    """Return one panel as a table: a row per group."""
    where = f"{panel.end:,.0f} {panel.steps}" if panel.by == "env_steps" else position(panel.end, panel.by)
    lines = [f"{panel.title}: {panel.quantity} at {where}" + (f" ({panel.meaning})" if panel.meaning else "")]
    rows = [panel.row(label) for label, _ in panel.groups]
    other = "seconds" if panel.by == "env_steps" else panel.steps
    first = rows[0]["label"]
    head = ["", "runs", "IQM", "95 % interval", "median", "min", "max"]
    head += [other] if len(panel.groups[0][1]) == 1 else []
    head += [f"P({chance_of(panel)})"] if len(rows) > 1 else []
    cells = [head]
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
        cells.append(line)
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for line in cells:
        numbers = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        lines.append(f"  {line[0].ljust(widths[0])}  {'  '.join(numbers)}")
    return "\n".join(lines)


def chance_of(panel: ComparisonPanel) -> str:
    """What a higher value is, in a word."""
    return "improvement" if panel.is_score else "higher"


def _short(value: float) -> str:
    """Format a score with four significant digits, without an exponent for large scores."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
