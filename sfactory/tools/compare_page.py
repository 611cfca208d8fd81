"""Render a comparison as one HTML page: curves with bands, scores with intervals, tables, notes. Needs no matplotlib.

The page itself is the template compare.html.j2 (`sfactory.tools.page`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sfactory.monitor.format import human
from sfactory.tools import svg
from sfactory.tools.compare import axis_label, cells, heading, time_format
from sfactory.tools.comparison import Comparison, ComparisonPanel
from sfactory.tools.page import Chart, legend, render


class Part(NamedTuple):
    """A panel of the comparison."""

    title: str
    heading: str
    charts: list[Chart]
    head: list[str]
    rows: list[list[str]]


def page(found: Comparison, axes: Sequence[str]) -> str:
    """Return the page as HTML. axes: env_steps, seconds, or both."""
    return render("compare.html.j2", content(found, axes))


def content(found: Comparison, axes: Sequence[str]) -> dict[str, Any]:
    """Return the variables of the template."""
    parts = []
    for panel in found.panels:
        head, *rows = cells(panel)
        charts = [*(_curves(panel, axis, wide=axis == axes[0]) for axis in axes), _scores(panel)]
        parts.append(Part(panel.title, heading(panel), charts, head, rows))
    runs = {str(run.path) for panel in found.panels for _, strata in panel.groups for g in strata for run in g.runs}
    return {"count": len(runs), "parts": parts, "notes": found.notes}


def _names(panel: ComparisonPanel) -> list[str]:
    return [label or "all runs" for label, _ in panel.groups]


def _curves(panel: ComparisonPanel, axis: str, wide: bool) -> Chart:
    """The IQM over runs of every group with its band; for narrow screens, a second drawing of a wide one."""
    x, bands = panel.grids[axis], panel.bands(axis).values()
    curves = [svg.Line(name, *band) for name, band in zip(_names(panel), bands, strict=True)]
    x_format = time_format(float(x[-1])) if axis == "seconds" else human
    sizes = (svg.WIDE, svg.NARROW) if wide else (svg.SMALL,)
    drawing, *narrow = (svg.lines(x, curves, x_format, size=size) for size in sizes)
    ends = [svg.number(float(curve.y[-1])) if axis == panel.by else "" for curve in curves]  # where scores are read
    keys = legend(_names(panel), ends)
    return Chart(f"{panel.quantity} by {axis_label(panel, axis)}", drawing, keys, wide, "".join(narrow))


def _scores(panel: ComparisonPanel) -> Chart:
    """Every run as a dot, and the IQM of its group with its interval."""
    rows = [panel.row(label) for label, _ in panel.groups]
    drawing = svg.intervals([(row["scores"], row["iqm"], row["interval"] or ()) for row in rows], "scores")
    return Chart("scores", drawing, legend(_names(panel), [row["iqm"] for row in rows]))
