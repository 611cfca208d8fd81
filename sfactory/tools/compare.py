"""The verb compare: runs side by side as a table, a picture, or JSON. What is put together: `sfactory.tools.comparison`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sfactory.errors import CommandError, Exit, did_you_mean
from sfactory.monitor.metrics import human
from sfactory.tools.comparison import AXES, WORDS, Comparison, Panel, compare


def main(args: list[str]) -> int:
    """The verb."""
    from sfactory.config import parsing, presets

    flags, own, names = presets.split_flags(args, {"-o": True, "--by": True, "--json": False})
    if flags:
        name = parsing.flag_name(next(iter(flags)))
        raise CommandError(Exit.USAGE, f"{name}: compare takes runs as they are; see --help")
    if not names:
        raise CommandError(Exit.USAGE, "expected RUNS, got none; for example: sfactory compare runs/a* runs/b* -o plot.png")
    by = own["--by"][-1] if "--by" in own else ""
    if by and by not in AXES:
        raise CommandError(Exit.USAGE, f"by: {by!r} is not one of {', '.join(AXES)}{did_you_mean(by, AXES)}")
    if "-o" in own:  # before the work, not after it
        from sfactory.tools import compare_plot

        pictures = [path for name in own["-o"] for path in compare_plot.targets(Path(name))]
    found = compare([Path(name) for name in names], by or AXES[0])
    print(json.dumps(found.as_dict()) if "--json" in own else text(found))
    if "-o" in own:
        compare_plot.save(found, pictures, (by,) if by else AXES)
        print(f"written: {', '.join(map(str, pictures))}", file=sys.stderr)
    elif "--json" not in own:
        print("\nA picture: the same command with -o plot.png (or .svg)")
    return 0


def text(found: Comparison) -> str:
    """Tables and notes for people."""
    return "\n\n".join([*map(table, found.panels), *(["\n".join(found.notes)] if found.notes else [])])


def table(panel: Panel) -> str:
    """One panel as text."""
    where = f"{panel.end:,.0f} {WORDS[panel.by]}"
    lines = [f"{panel.title}: {panel.quantity} at {where} (mean of the last 100 games)"]
    rows = [panel.row(label) for label, _ in panel.groups]
    other = "seconds" if panel.by == "env_steps" else "steps"
    first = rows[0]["label"]
    head = ["", "runs", "IQM", "95 % interval", "median", "min", "max"]
    head += [other] if len(panel.groups[0][1]) == 1 else []
    head += ["beats the first"] if len(rows) > 1 else []
    cells = [head]
    for row in rows:
        line = [row["label"] or "all runs", str(len(row["runs"])), _short(row["iqm"])]
        line.append(" to ".join(map(_short, row["interval"])) if row["interval"] else "-")
        line += [_short(row[name]) for name in ("median", "min", "max")]
        if other in head:
            line.append(human(row[WORDS[AXES[1 - AXES.index(panel.by)]]]))
        if row["improvement"]:
            chance, low, high = row["improvement"]
            line.append(f"{100 * chance:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
        elif len(rows) > 1:
            line.append("" if row["label"] != first else "-")
        cells.append(line)
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    for line in cells:
        numbers = (text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        lines.append(f"  {line[0].ljust(widths[0])}  {'  '.join(numbers)}")
    return "\n".join(lines)


def _short(value: float) -> str:
    """Four digits that matter, never an exponent where people read scores."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
