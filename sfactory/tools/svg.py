"""Small charts as inline SVG for a page without scripts: lines with bands, stacked shares, bars.

Colours are classes (c0, c1, ...) that the page's style gives a value for light and for dark. Numbers under the pointer
are <title> elements of invisible strips, which every browser shows by itself. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

SMALL, WIDE = (340, 150), (690, 318)  # width and height as they stand on the page, so that text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 8, 22
POINTS = 240  # per line: more cannot be told apart at this width
STRIPS = 32

Format = Callable[[float], str]
Size = tuple[int, int]


@dataclass(frozen=True)
class Line:
    """One curve. low, high: a band around it, or None. [rows], NaN where there is nothing."""

    name: str
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def number(value: float) -> str:
    """A short number for axes and tables: 0.0031, 12.3, 4,560, 1.2e+08."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between low and high, about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(
    x: np.ndarray, curves: Sequence[Line], x_format: Format, y_format: Format = number, size: Size = SMALL
) -> str:
    """Curves over a common axis; the range of y is theirs, with 0 in it where it is near."""
    known = [v[np.isfinite(v)] for c in curves for v in (c.y, c.low, c.high) if v is not None]
    everything = np.concatenate(known) if known else np.zeros(0)
    if not everything.size:
        return nothing()
    frame = _Frame(x, _range(everything), x_format, y_format, size)
    parts = [frame.axes()]
    for i, curve in enumerate(curves):
        if curve.low is not None and curve.high is not None:
            parts.append(frame.area(curve.low, curve.high, f"c{i} band"))
        parts.append(frame.path(curve.y, f"c{i} line"))
    return frame.svg(parts, [(c.name, c.y) for c in curves], ", ".join(c.name for c in curves))


def stacked(x: np.ndarray, layers: Sequence[tuple[str, np.ndarray]], looks: Sequence[str], x_format: Format) -> str:
    """Shares that add up to one, over a common axis; rows without any are left out.

    layers: (name, [rows]), from the bottom; NaN counts as 0. looks: a colour class per layer.
    """
    if not layers or not any(np.isfinite(y).any() for _, y in layers):
        return nothing()
    known = np.isfinite(np.stack([y for _, y in layers])).any(axis=0)
    x, layers = x[known], [(name, y[known]) for name, y in layers]
    tops = np.cumsum([np.nan_to_num(y) for _, y in layers], axis=0)
    frame = _Frame(x, (0.0, 1.0), x_format, lambda v: f"{100 * v:.0f} %", SMALL)
    parts = []
    for i, top in enumerate(tops):
        parts.append(frame.area(tops[i - 1] if i else np.zeros_like(top), top, f"{looks[i]} share"))
    parts.append(frame.axes())
    return frame.svg(parts, list(layers), ", ".join(name for name, _ in layers))


def bars(names: Sequence[str], shares: Sequence[float], label: str) -> str:
    """One bar per name with its share in percent above it."""
    width, height = SMALL
    room = (width - 2 * RIGHT) / len(names)
    most, bottom = max(*shares, 1e-9), height - BOTTOM
    parts = [f'<path class="axis" d="M{RIGHT} {bottom}H{width - RIGHT}"/>']
    for i, (name, share) in enumerate(zip(names, shares, strict=True)):
        tall = share / most * (bottom - TOP - 16)
        x, middle = RIGHT + (i + 0.14) * room, RIGHT + (i + 0.5) * room
        said = f"{100 * share:.1f}" if 0 < share < 0.0995 else f"{100 * share:.0f}"
        parts += [
            f'<rect class="c0 bar" x="{x:.1f}" y="{bottom - tall:.1f}" width="{0.72 * room:.1f}" height="{tall:.1f}">'
            f"<title>{escape(name)}: {100 * share:.2f} %</title></rect>",
            f'<text x="{middle:.1f}" y="{bottom - tall - 4:.1f}" text-anchor="middle">{said} %</text>' if share else "",
            f'<text x="{middle:.1f}" y="{height - 7}" text-anchor="middle">{escape(name)}</text>',
        ]
    return _svg(parts, label, SMALL)


def nothing() -> str:
    """In the place of a chart without data."""
    return '<p class="none">no data</p>'


class _Frame:
    """Axes, and from data to points of the drawing."""

    def __init__(
        self, x: np.ndarray, span: tuple[float, float], x_format: Format, y_format: Format, size: Size
    ) -> None:
        self.x, (self.low, self.high), (self.width, self.height) = x, span, size
        self.x_format, self.y_format = x_format, y_format
        self.start, self.end = (0.0, float(x[-1])) if x[-1] > 0 else (float(x[0]), float(x[0]) + 1.0)

    def across(self, x: np.ndarray | float) -> np.ndarray:
        return LEFT + (np.asarray(x) - self.start) / (self.end - self.start) * (self.width - LEFT - RIGHT)

    def up(self, y: np.ndarray | float) -> np.ndarray:
        return self.height - BOTTOM - (np.asarray(y) - self.low) / (self.high - self.low) * (self.height - TOP - BOTTOM)

    def axes(self) -> str:
        found = []
        for value in ticks(self.low, self.high):
            y = float(self.up(value))
            found.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{self.width - RIGHT}"/>')
            said = escape(self.y_format(value))
            found.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{said}</text>')
        for value in ticks(self.start, self.end, 5):
            x = min(float(self.across(value)), self.width - RIGHT - 10)
            said = escape(self.x_format(value))
            found.append(f'<text x="{x:.1f}" y="{self.height - 7}" text-anchor="middle">{said}</text>')
        return "".join(found)

    def path(self, y: np.ndarray, look: str) -> str:
        """A line, broken where nothing is known. A point alone is a dot."""
        x, y = _thinned(self.x, y)
        across, up, pieces, pen = self.across(x), self.up(y), [], "M"
        for a, b, known in zip(across, up, np.isfinite(y), strict=True):
            if known:
                pieces.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L" if known else "M"
        if len(pieces) == 1:
            pieces.append("h.1")
        return f'<path class="{look}" d="{"".join(pieces)}"/>'

    def area(self, low: np.ndarray, high: np.ndarray, look: str) -> str:
        """What lies between two curves; rows without both are left out."""
        known = np.isfinite(low) & np.isfinite(high)
        if known.sum() < 2:
            return ""
        x, low, high = (_means(v[known]) for v in (self.x, low, high))
        there = [f"{a:.1f} {b:.1f}" for a, b in zip(self.across(x), self.up(high), strict=True)]
        back = [f"{a:.1f} {b:.1f}" for a, b in zip(self.across(x[::-1]), self.up(low[::-1]), strict=True)]
        return f'<path class="{look}" d="M{"L".join(there + back)}Z"/>'

    def svg(self, parts: Sequence[str], values: Sequence[tuple[str, np.ndarray]], label: str) -> str:
        """The drawing, and strips over it that say what stands below the pointer."""
        edges = np.linspace(self.start, self.end, STRIPS + 1)
        width, strips = (self.width - LEFT - RIGHT) / STRIPS, []
        for i in range(STRIPS):
            here = (self.x >= edges[i]) & (self.x <= edges[i + 1])
            said = []
            for name, y in values:
                known = y[here][np.isfinite(y[here])]
                if known.size:
                    said.append(f"{name} {self.y_format(float(known.mean()))}")
            if said:
                words = escape(f"{self.x_format(float(self.x[here].mean()))}: {', '.join(said)}")
                strips.append(
                    f'<rect class="strip" x="{LEFT + i * width:.1f}" y="{TOP}" width="{width:.1f}" '
                    f'height="{self.height - TOP - BOTTOM}"><title>{words}</title></rect>'
                )
        return _svg([*parts, *strips], label, (self.width, self.height))


def _svg(parts: Sequence[str], label: str, size: Size) -> str:
    viewed = f'viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}"'
    return f"<svg {viewed}>{''.join(parts)}</svg>"


def _range(values: np.ndarray) -> tuple[float, float]:
    """Low and high of an axis: 0 belongs to it where it is less than the spread away, and a constant gets room."""
    low, high = float(values.min()), float(values.max())
    spread = high - low or abs(high) or 1.0
    if 0 < low < 1.5 * spread:
        low = 0.0
    elif -1.5 * spread < high < 0:
        high = 0.0
    return (low - 0.04 * spread if low < 0 or high == low else low), high + 0.06 * spread


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points: lowest and highest of each stretch, in order, so that no spike gets lost."""
    known = np.isfinite(y)
    if known.sum() <= POINTS:
        return x, y
    x, y = x[known], y[known]
    kept = set()
    for stretch in np.array_split(np.arange(len(y)), POINTS // 2):
        kept |= {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])}
    order = sorted(kept | {len(y) - 1})
    return x[order], y[order]


def _means(values: np.ndarray) -> np.ndarray:
    """At most POINTS means of neighbours; the first and the last stay where they are."""
    if len(values) <= POINTS:
        return values
    found = np.array([stretch.mean() for stretch in np.array_split(values, POINTS)])
    found[0], found[-1] = values[0], values[-1]
    return found
