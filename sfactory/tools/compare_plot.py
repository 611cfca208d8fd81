"""Plot a comparison: curves with bands, scores with intervals, probability of improvement. Needs matplotlib.

A row of axes per panel. Colours are those of Okabe and Ito, which are distinguishable with any color vision. Every
group is labeled beside its score in its color, so that no legend is needed.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sfactory.errors import CommandError, Exit
from sfactory.files import replace_text, require_writable
from sfactory.monitor.format import human
from sfactory.tools.compare import axis_label, time_format
from sfactory.tools.comparison import Comparison, ComparisonPanel

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))  # once all colors are used
SUFFIXES = (".png", ".svg", ".pdf", ".html")
LABEL = 24  # characters in a line of a label
INK, GREY, LINE = "#1f2328", "#656d76", "#d0d7de"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "text.color": INK,
    "axes.labelcolor": GREY, "axes.edgecolor": LINE, "xtick.color": GREY, "ytick.color": GREY, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LINE,
    "grid.linewidth": 0.6, "grid.alpha": 0.7, "axes.axisbelow": True, "figure.facecolor": "white",
    "svg.fonttype": "path", "svg.hashsalt": "sfactory", "xtick.major.size": 0, "ytick.major.size": 0,
}  # fmt: skip


def targets(path: Path) -> list[Path]:
    """Return the files of one -o; without a suffix, PNG and SVG. Raises CommandError if they cannot be written."""
    if path.suffix != ".html" and find_spec("matplotlib") is None:
        raise CommandError(
            Exit.USAGE,
            "a plot needs matplotlib, which is not installed: pip install 'sfactory[plots]'; a page (.html) does not",
        )
    if path.suffix and path.suffix not in SUFFIXES:
        raise CommandError(
            Exit.USAGE, f"{path}: the suffix must be one of {', '.join(SUFFIXES)}; without one, PNG and SVG are written"
        )
    files = [path] if path.suffix else [path.with_name(path.name + suffix) for suffix in SUFFIXES[:2]]
    for file in files:
        require_writable(file)
    return files


def save(found: Comparison, pictures: Sequence[Path], axes: Sequence[str]) -> None:
    """Draw the figure and write every file; .html: a page. axes: env_steps, seconds, or both."""
    for path in pictures:
        if path.suffix == ".html":
            from sfactory.tools.compare_page import page

            replace_text(path, page(found, axes))
    pictures = [path for path in pictures if path.suffix != ".html"]
    if not pictures:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure = draw(found, axes)
        for path in pictures:
            # without a date the same comparison is the same file
            clean: dict[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
            figure.savefig(path, dpi=160, metadata=clean[path.suffix])
        pyplot.close(figure)


def draw(found: Comparison, axes: Sequence[str]) -> Any:
    """Return the figure: curves over each of `axes`, scores, probability of improvement."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(label for panel in found.panels for label, _ in panel.groups if label))
    styles = {n: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, n in enumerate(names)}
    styles[""] = COLOURS[0], DASHES[0]  # a single group has an empty label
    has_improvement = max(len(panel.groups) for panel in found.panels) > 1
    widths = [3.0] * len(axes) + [2.0] + ([1.5] if has_improvement else [])
    num_groups = max(len(panel.groups) for panel in found.panels)
    height = max(2.9, 0.9 + 0.36 * num_groups)
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = 0.9 + 1.02 * sum(widths), height * len(found.panels)
    layout = ConstrainedLayoutEngine(wspace=0.03, hspace=0.05, h_pad=0.06)
    figure = pyplot.figure(figsize=size, layout=layout)
    for subfigure, panel in zip(_rows(figure, len(found.panels)), found.panels, strict=True):
        subfigure.suptitle(panel.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        plots = subfigure.subplots(1, len(widths), gridspec_kw={"width_ratios": widths}, squeeze=False)[0]
        for axis, plot in zip(axes, plots, strict=False):
            _curves(plot, panel, axis, styles)
        for plot in plots[1 : len(axes)]:  # one y axis for both
            plot.sharey(plots[0])
            plots[0].autoscale(axis="y")
        _scores(plots[len(axes)], panel, styles)
        if has_improvement:
            _improvement(plots[-1], panel, styles)
    caption = "line: interquartile mean over runs; band and bar: its 95 % stratified-bootstrap interval; dots: runs"
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color=GREY)
    return figure


def _rows(figure: Any, count: int) -> list[Any]:
    return list(figure.subfigures(count, 1, squeeze=False)[:, 0])


def _curves(plot: Any, panel: ComparisonPanel, axis: str, styles: dict[str, Any]) -> None:
    """Plot the IQM over runs with its band; for a group of one run, only its line. A single point is a marker."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    plot.set_title(f"{panel.quantity} by {axis_label(panel, axis)}", loc="left", color=GREY)
    x = panel.grids[axis]
    for label, (middle, low, high) in panel.bands(axis).items():
        color, dash = styles[label]
        if len(set(x[np.isfinite(middle)])) == 1:  # a line of no length
            error = np.maximum([[middle[-1] - low[-1]], [high[-1] - middle[-1]]], 0.0)
            plot.errorbar(x[-1:], middle[-1:], error, color=color, marker="o", elinewidth=1.8, zorder=3, clip_on=False)
            continue
        plot.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        plot.plot(x, middle, color=color, linestyle=dash, linewidth=1.8, solid_capstyle="round")
    plot.set_xlim(min(0.0, x[0]), x[-1] * 1.01 if x[-1] else 1.0)
    label_of = time_format(x[-1]) if axis == "seconds" else human
    plot.xaxis.set_major_locator(MaxNLocator(5))
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: label_of(value)))
    plot.grid(axis="x", visible=False)


def _labels(plot: Any, panel: ComparisonPanel, styles: dict[str, Any]) -> None:
    """Label one row per group, from the top, in its color."""
    labels = [label for label, _ in panel.groups]
    plot.set_ylim(len(labels) - 0.4, -0.6)
    plot.set_yticks(range(len(labels)), [_wrapped(label, panel, styles[label][1]) for label in labels])
    for text, label in zip(plot.get_yticklabels(), labels, strict=True):
        text.set_color(styles[label][0])
        text.set_fontweight("bold")
    plot.grid(axis="y", visible=False)
    plot.spines["left"].set_visible(False)


def _wrapped(label: str, panel: ComparisonPanel, dash: Any) -> str:
    """Return a label with its dash style; for a single group, the number of runs.

    A label has one setting per line. Others are broken between words and after `_`, `-` and `/`.
    """
    runs = sum(len(group.runs) for group in dict(panel.groups)[label])
    style = ("", " (dashed)", " (dotted)", " (dash-dot)")[DASHES.index(dash)]
    lines = label.split(" ") if "=" in label else textwrap.wrap(re.sub(r"([_/-])", r"\1 ", label), LABEL)
    lines = [line if "=" in label else re.sub(r"([_/-]) ", r"\1", line) for line in lines]
    return "\n".join(lines) + style if label else f"{runs} run{'s' * (runs > 1)}"


def _scores(plot: Any, panel: ComparisonPanel, styles: dict[str, Any]) -> None:
    """Plot every run as a dot and the IQM as a bar across its interval."""
    end = f"{human(panel.end)} {panel.steps}" if panel.by == "env_steps" else time_format(panel.end)(round(panel.end))
    plot.set_title(f"at {end}", loc="left", color=GREY)
    for position, (label, strata) in enumerate(panel.groups):
        color, row = styles[label][0], panel.row(label)
        for group in strata:
            plot.plot(group.scores, [position] * len(group.scores), "o", color=color, alpha=0.35, markersize=4, mew=0)
        if row["interval"]:
            plot.plot(
                row["interval"], [position, position], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt"
            )
        plot.plot([row["iqm"]], [position], "|", color=color, markersize=13, markeredgewidth=2.4)
    _labels(plot, panel, styles)
    plot.margins(x=0.12)


def _improvement(plot: Any, panel: ComparisonPanel, styles: dict[str, Any]) -> None:
    """Plot the probability of improvement of each group over the first group."""
    if len(panel.groups) == 1:
        plot.set_axis_off()
        return
    plot.set_title("P(improvement)" if panel.is_score else "P(higher)", loc="left", color=GREY)
    plot.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
    for position, (label, _) in enumerate(panel.groups):
        color, improvement = styles[label][0], panel.improvement(label)
        if improvement is None:
            plot.text(0.5, position, "first", ha="center", va="center", color=color, backgroundcolor="white")
            continue
        probability, low, high = improvement
        if low is not None:
            plot.plot([low, high], [position, position], color=color, linewidth=5, alpha=0.35, solid_capstyle="butt")
        plot.plot([probability], [position], "|", color=color, markersize=13, markeredgewidth=2.4)
    _labels(plot, panel, styles)
    plot.set_yticklabels([])
    plot.set_xlim(-0.04, 1.04)
    plot.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
