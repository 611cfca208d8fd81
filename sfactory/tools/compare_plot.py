"""The picture of a comparison: curves with interval bands, scores with intervals, who beats whom. Needs matplotlib.

A row per panel. Colours are those of Okabe and Ito, which people with any colour vision tell apart; every group is
named beside its own score, in its colour, so that there is no legend to look up.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sfactory.errors import CommandError, Exit
from sfactory.monitor.format import human
from sfactory.tools.comparison import Comparison, Panel

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))  # once all colours are used
SUFFIXES = (".png", ".svg", ".pdf")
INK, GREY, LINE = "#1f2328", "#656d76", "#d0d7de"
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "text.color": INK,
    "axes.labelcolor": GREY, "axes.edgecolor": LINE, "xtick.color": GREY, "ytick.color": GREY, "xtick.labelsize": 8,
    "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": LINE,
    "grid.linewidth": 0.6, "grid.alpha": 0.7, "axes.axisbelow": True, "figure.facecolor": "white",
    "svg.fonttype": "path", "svg.hashsalt": "sfactory", "xtick.major.size": 0, "ytick.major.size": 0,
}  # fmt: skip
AXIS_LABELS = {"env_steps": "env steps", "seconds": "training time"}


def targets(path: Path) -> list[Path]:
    """The files of one -o: without a suffix, PNG and SVG. Exit 2 for what cannot be written, matplotlib missing."""
    if find_spec("matplotlib") is None:
        raise CommandError(Exit.USAGE, "a picture needs a package that is not installed: pip install 'sfactory[plots]'")
    if path.suffix and path.suffix not in SUFFIXES:
        raise CommandError(Exit.USAGE, f"{path}: pictures are {', '.join(SUFFIXES)}, or both PNG and SVG without a suffix")
    if not path.parent.is_dir():
        raise CommandError(Exit.USAGE, f"{path}: the folder {path.parent} does not exist")
    return [path] if path.suffix else [path.with_name(path.name + suffix) for suffix in SUFFIXES[:2]]


def save(found: Comparison, pictures: Sequence[Path], axes: Sequence[str]) -> None:
    """Draw once, write every file. axes: env_steps, seconds, or both."""
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
    """The figure: curves by each of `axes`, scores, chances."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(label for panel in found.panels for label, _ in panel.groups if label))
    look = {n: (COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, n in enumerate(names)}
    look[""] = COLOURS[0], DASHES[0]  # a group alone in its panel has no name
    several = max(len(panel.groups) for panel in found.panels) > 1
    widths = [3.0] * len(axes) + [2.0] + ([1.5] if several else [])
    most = max(len(panel.groups) for panel in found.panels)
    height = max(2.9, 0.9 + 0.36 * most)
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    room_for_all = 0.9 + 1.02 * sum(widths), height * len(found.panels)
    layout = ConstrainedLayoutEngine(wspace=0.03, hspace=0.05, h_pad=0.06)
    figure = pyplot.figure(figsize=room_for_all, layout=layout)
    for part, panel in zip(_parts(figure, len(found.panels)), found.panels, strict=True):
        part.suptitle(panel.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        rooms = part.subplots(1, len(widths), gridspec_kw={"width_ratios": widths}, squeeze=False)[0]
        for axis, room in zip(axes, rooms, strict=False):
            _curves(room, panel, axis, look)
        for room in rooms[1 : len(axes)]:  # one scale for both, so that they can be read across
            room.sharey(rooms[0])
            rooms[0].autoscale(axis="y")
        _scores(rooms[len(axes)], panel, look)
        if several:
            _chances(rooms[-1], panel, look)
    said = "line: interquartile mean over runs; band and bar: its 95 % stratified-bootstrap interval; dots: runs"
    figure.supxlabel(said, x=0.01, ha="left", fontsize=7.5, color=GREY)
    return figure


def _parts(figure: Any, count: int) -> list[Any]:
    return list(figure.subfigures(count, 1, squeeze=False)[:, 0])


def _curves(room: Any, panel: Panel, axis: str, look: dict[str, Any]) -> None:
    """IQM over runs with its band; where a group is one run, its line alone."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    room.set_title(f"{panel.quantity} by {AXIS_LABELS[axis]}", loc="left", color=GREY)
    x = panel.grids[axis]
    for label, (middle, low, high) in panel.bands(axis).items():
        colour, dash = look[label]
        room.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        room.plot(x, middle, color=colour, linestyle=dash, linewidth=1.8, solid_capstyle="round")
    room.set_xlim(min(0.0, x[0]), x[-1] * 1.01 if x[-1] else 1.0)
    room.xaxis.set_major_locator(MaxNLocator(5))
    room.xaxis.set_major_formatter(FuncFormatter(_time(x[-1]) if axis == "seconds" else lambda v, _: human(v)))
    room.grid(axis="x", visible=False)


def _time(end: float) -> Any:
    """Ticks of a time axis in the unit that fits its end."""
    unit, scale = ("h", 3600.0) if end > 2 * 3600 else ("min", 60.0) if end > 180 else ("s", 1.0)
    return lambda value, _: f"{value / scale:g} {unit}"


def _names(room: Any, panel: Panel, look: dict[str, Any]) -> None:
    """One row per group, from the top, named in its colour."""
    labels = [label for label, _ in panel.groups]
    room.set_ylim(len(labels) - 0.4, -0.6)
    room.set_yticks(range(len(labels)), [_folded(label, panel, look[label][1]) for label in labels])
    for text, label in zip(room.get_yticklabels(), labels, strict=True):
        text.set_color(look[label][0])
        text.set_fontweight("bold")
    room.grid(axis="y", visible=False)
    room.spines["left"].set_visible(False)


def _folded(label: str, panel: Panel, dash: Any) -> str:
    """A setting per line, and how the line is drawn where its colour is not its own. A group alone: how many runs."""
    runs = sum(len(group.runs) for group in dict(panel.groups)[label])
    drawn = ("", " (dashed)", " (dotted)", " (dash-dot)")[DASHES.index(dash)]
    return "\n".join(label.split(" ")) + drawn if label else f"{runs} run{'s' * (runs > 1)}"


def _scores(room: Any, panel: Panel, look: dict[str, Any]) -> None:
    """Every run as a dot, the IQM as a bar across its interval."""
    where = f"{human(panel.end)} steps" if panel.by == "env_steps" else _time(panel.end)(round(panel.end), None)
    room.set_title(f"at {where}", loc="left", color=GREY)
    for place, (label, strata) in enumerate(panel.groups):
        colour, row = look[label][0], panel.row(label)
        for group in strata:
            room.plot(group.scores, [place] * len(group.scores), "o", color=colour, alpha=0.35, markersize=4, mew=0)
        if row["interval"]:
            room.plot(row["interval"], [place, place], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
        room.plot([row["iqm"]], [place], "|", color=colour, markersize=13, markeredgewidth=2.4)
    _names(room, panel, look)
    room.margins(x=0.12)


def _chances(room: Any, panel: Panel, look: dict[str, Any]) -> None:
    """Probability that a run of each group beats one of the first."""
    if len(panel.groups) == 1:
        room.set_axis_off()
        return
    room.set_title("beats the first", loc="left", color=GREY)
    room.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
    for place, (label, _) in enumerate(panel.groups):
        colour, found = look[label][0], panel.improvement(label)
        if found is None:
            room.text(0.5, place, "first", ha="center", va="center", color=colour, backgroundcolor="white")
            continue
        chance, low, high = found
        room.plot([low, high], [place, place], color=colour, linewidth=5, alpha=0.35, solid_capstyle="butt")
        room.plot([chance], [place], "|", color=colour, markersize=13, markeredgewidth=2.4)
    _names(room, panel, look)
    room.set_yticklabels([])
    room.set_xlim(-0.04, 1.04)
    room.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
