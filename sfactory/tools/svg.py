"""Draw small charts as inline SVG: lines with bands, stacked shares, bars, intervals. Needs NumPy only.

Colours are CSS classes (c0, c1, ...) that the page's style sheet defines for light and dark. Values under the pointer
are <title> elements of invisible strips, which every browser displays without scripts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

SMALL, WIDE, NARROW = (340, 150), (690, 318), (340, 220)  # width and height on the page, so that text keeps its size
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 8, 22
MAX_POINTS = 240  # per line: more are not visible at this width
MAX_MARKERS = 40  # points of a curve that are drawn one by one
STRIPS = 32
COLORS, DASHES = 7, 4  # of the page's style
CHARACTER = 6.4  # pixels of a digit, at most

Format = Callable[[float], str]
Size = tuple[int, int]


@dataclass(frozen=True)
class Line:
    """One curve [rows], with an optional band from `low` to `high`. NaN where there is no value.

    points: mark every value, of curves with few of them.
    """

    name: str
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    points: bool = False


def css_class(i: int) -> str:
    """CSS classes of the i-th curve of a chart: colors first, then the same colors with dashes."""
    dash = i // COLORS % DASHES
    return f"c{i % COLORS}" + (f" dash{dash}" if dash else "")


def number(value: float) -> str:
    """Format a number for axes and tables: 0.0031, 12.3, 4,560, 6e-6, 1.2e8."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "-"
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    digits, e, exponent = f"{value:.3g}".partition("e")
    return f"{digits}e{int(exponent)}" if e else digits


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers between low and high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(
    x: np.ndarray,
    curves: Sequence[Line],
    x_format: Format,
    y_format: Format = number,
    size: Size = SMALL,
    zero: bool = True,
) -> str:
    """Draw curves over a common axis; the y axis fits them and includes 0 if it is near and `zero` allows it."""
    known = [v[np.isfinite(v)] for c in curves for v in (c.y, c.low, c.high) if v is not None]
    values = np.concatenate(known) if known else np.zeros(0)
    if not values.size:
        return no_data()
    frame = _Frame(x, _range(values, zero), x_format, y_format, size)
    parts = [frame.axes()]
    for i, curve in enumerate(curves):
        if curve.low is not None and curve.high is not None:
            parts.append(frame.area(curve.low, curve.high, f"{css_class(i)} band"))
        parts.append(frame.path(curve.y, f"{css_class(i)} line"))
        count = int(np.isfinite(curve.y).sum())
        if count == 1 or (curve.points and count <= MAX_MARKERS):
            parts.append(frame.markers(curve.y, f"{css_class(i)} bar"))
    return frame.svg(parts, [(c.name, c.y) for c in curves], ", ".join(c.name for c in curves))


def stacked(x: np.ndarray, layers: Sequence[tuple[str, np.ndarray]], classes: Sequence[str], x_format: Format) -> str:
    """Draw shares that add up to one over a common axis; rows without any share are left out.

    layers: (name, [rows]) from the bottom, NaN counts as 0. classes: a CSS class per layer.
    """
    if not layers or not any(np.isfinite(y).any() for _, y in layers):
        return no_data()
    known = np.isfinite(np.stack([y for _, y in layers])).any(axis=0)
    x, layers = x[known], [(name, y[known]) for name, y in layers]
    tops = np.cumsum([np.nan_to_num(y) for _, y in layers], axis=0)
    frame = _Frame(x, (0.0, 1.0), x_format, lambda v: f"{100 * v:.0f} %", SMALL)
    parts = []
    for i, top in enumerate(tops):
        parts.append(frame.area(tops[i - 1] if i else np.zeros_like(top), top, f"{classes[i]} share"))
    parts.append(frame.axes())
    return frame.svg(parts, list(layers), ", ".join(name for name, _ in layers))


def bars(names: Sequence[str], shares: Sequence[float], label: str) -> str:
    """Draw one bar per name with its share in percent above it."""
    width, height = SMALL
    slot = (width - 2 * RIGHT) / len(names)
    largest, bottom = max(*shares, 1e-9), height - BOTTOM
    parts = [f'<path class="axis" d="M{RIGHT} {bottom}H{width - RIGHT}"/>']
    for i, (name, share) in enumerate(zip(names, shares, strict=True)):
        bar = share / largest * (bottom - TOP - 16)
        x, middle = RIGHT + (i + 0.14) * slot, RIGHT + (i + 0.5) * slot
        percent = f"{100 * share:.1f}" if 0 < share < 0.0995 else f"{100 * share:.0f}"
        parts += [
            f'<rect class="c0 bar" x="{x:.1f}" y="{bottom - bar:.1f}" width="{0.72 * slot:.1f}" height="{bar:.1f}">'
            f"<title>{escape(name)}: {100 * share:.2f} %</title></rect>",
            f'<text x="{middle:.1f}" y="{bottom - bar - 4:.1f}" text-anchor="middle">{percent} %</text>'
            if share
            else "",
            f'<text x="{middle:.1f}" y="{height - 7}" text-anchor="middle">{escape(name)}</text>',
        ]
    return element(parts, label, SMALL)


def intervals(groups: Sequence[tuple[Sequence[float], float, Sequence[float]]], label: str) -> str:
    """Draw a row per group from the top: its values as dots, (low, high) as a bar, the middle as a stroke.

    groups: (values, middle, interval), an interval may be empty.
    """
    (width, _), row, side = SMALL, 26, 20
    height = max(SMALL[1], TOP + row * len(groups) + BOTTOM)
    every = np.concatenate([np.array([*values, middle, *interval]) for values, middle, interval in groups])
    low, high = _range(every, zero=False)
    parts = []

    def at(value: float) -> float:
        return side + (value - low) / (high - low) * (width - 2 * side)

    for value in ticks(low, high, 5):
        text = number(value)
        half = CHARACTER / 2 * len(text)
        middle_of_text = min(max(at(value), 2 + half), width - 2 - half)
        parts.append(f'<path class="grid" d="M{at(value):.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(f'<text x="{middle_of_text:.1f}" y="{height - 7}" text-anchor="middle">{text}</text>')
    for i, (values, middle, interval) in enumerate(groups):
        y, color = TOP + (i + 0.5) * (height - TOP - BOTTOM) / len(groups), css_class(i)
        if interval:
            start, end = at(interval[0]), at(interval[1])
            place = f'x="{start:.1f}" y="{y - 4:.1f}" width="{end - start:.1f}" height="8"'
            parts.append(
                f'<rect class="{color} interval" {place}>'
                f"<title>{number(interval[0])} to {number(interval[1])}</title></rect>"
            )
        parts += [f'<circle class="{color} share" cx="{at(v):.1f}" cy="{y:.1f}" r="3.5"/>' for v in values]
        parts.append(f'<path class="{color} line middle" d="M{at(middle):.1f} {y - 9:.1f}v18"/>')
    return element(parts, label, (width, height))


def no_data() -> str:
    """Return the placeholder of a chart without data."""
    return '<p class="none">no data</p>'


class _Frame:
    """The axes of a chart: convert data to pixels, draw axes, lines, areas and tooltips."""

    def __init__(
        self, x: np.ndarray, span: tuple[float, float], x_format: Format, y_format: Format, size: Size
    ) -> None:
        self.x, (self.low, self.high), (self.width, self.height) = x, span, size
        self.x_format, self.y_format = x_format, y_format
        self.start, self.end = (0.0, float(x[-1])) if x[-1] > 0 else (float(x[0]), float(x[0]) + 1.0)
        self.y_labels = [(value, y_format(value)) for value in ticks(self.low, self.high)]
        longest = max((len(label) for _, label in self.y_labels), default=0)
        self.left = max(LEFT, 8 + math.ceil(CHARACTER * longest))  # long labels are not cut

    def x_pixels(self, x: np.ndarray | float) -> np.ndarray:
        return self.left + (np.asarray(x) - self.start) / (self.end - self.start) * (self.width - self.left - RIGHT)

    def y_pixels(self, y: np.ndarray | list[float] | float) -> np.ndarray:
        return self.height - BOTTOM - (np.asarray(y) - self.low) / (self.high - self.low) * (self.height - TOP - BOTTOM)

    def axes(self) -> str:
        elements = []
        for value, label in self.y_labels:
            y = float(self.y_pixels(value))
            elements.append(f'<path class="grid" d="M{self.left} {y:.1f}H{self.width - RIGHT}"/>')
            elements.append(f'<text x="{self.left - 5}" y="{y + 3:.1f}" text-anchor="end">{escape(label)}</text>')
        for value in ticks(self.start, self.end, 5):
            label = self.x_format(value)
            x = min(float(self.x_pixels(value)), self.width - 2 - CHARACTER / 2 * len(label))
            elements.append(f'<text x="{x:.1f}" y="{self.height - 7}" text-anchor="middle">{escape(label)}</text>')
        return "".join(elements)

    def path(self, y: np.ndarray, css_class: str) -> str:
        """Draw a line, interrupted where values are missing."""
        x, y = _extremes(self.x, y)
        xs, ys, pieces, pen = self.x_pixels(x), self.y_pixels(y), [], "M"
        for a, b, known in zip(xs, ys, np.isfinite(y), strict=True):
            if known:
                pieces.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L" if known else "M"
        return f'<path class="{css_class}" d="{"".join(pieces)}"/>'

    def markers(self, y: np.ndarray, css_class: str) -> str:
        """Draw a dot for every value."""
        known = np.isfinite(y)
        dots = zip(self.x_pixels(self.x[known]), self.y_pixels(y[known]), strict=True)
        return "".join(f'<circle class="{css_class}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in dots)

    def area(self, low: np.ndarray, high: np.ndarray, css_class: str) -> str:
        """Fill the area between two curves; rows without both values are left out. A single row is a bar."""
        known = np.isfinite(low) & np.isfinite(high)
        if known.sum() == 1:
            x, (bottom, top) = self.x_pixels(self.x[known])[0], self.y_pixels([low[known][0], high[known][0]])
            return f'<path class="{css_class}" d="M{x - 4:.1f} {bottom:.1f}V{top:.1f}h8V{bottom:.1f}Z"/>'
        if not known.any():
            return ""
        x, low, high = (_means(v[known]) for v in (self.x, low, high))
        forth = [f"{a:.1f} {b:.1f}" for a, b in zip(self.x_pixels(x), self.y_pixels(high), strict=True)]
        back = [f"{a:.1f} {b:.1f}" for a, b in zip(self.x_pixels(x[::-1]), self.y_pixels(low[::-1]), strict=True)]
        return f'<path class="{css_class}" d="M{"L".join(forth + back)}Z"/>'

    def svg(self, parts: Sequence[str], values: Sequence[tuple[str, np.ndarray]], label: str) -> str:
        """Return the SVG element, with invisible strips whose tooltips hold the values."""
        edges = np.linspace(self.start, self.end, STRIPS + 1)
        width, strips = (self.width - self.left - RIGHT) / STRIPS, []
        for i in range(STRIPS):
            here = (self.x >= edges[i]) & (self.x <= edges[i + 1])
            texts = []
            for name, y in values:
                known = y[here][np.isfinite(y[here])]
                if known.size:
                    texts.append(f"{name} {self.y_format(float(known.mean()))}")
            if texts:
                tooltip = escape(f"{self.x_format(float(self.x[here].mean()))}: {', '.join(texts)}")
                strips.append(
                    f'<rect class="strip" x="{self.left + i * width:.1f}" y="{TOP}" width="{width:.1f}" '
                    f'height="{self.height - TOP - BOTTOM}"><title>{tooltip}</title></rect>'
                )
        return element([*parts, *strips], label, (self.width, self.height))


def element(parts: Sequence[str], label: str, size: Size) -> str:
    """Return an SVG element of some parts. label: what it shows, for readers that do not see it."""
    attributes = f'viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}"'
    return f"<svg {attributes}>{''.join(parts)}</svg>"


def _range(values: np.ndarray, zero: bool) -> tuple[float, float]:
    """Return low and high of an axis. 0 is included if it is nearer than 1.5 x the spread; a constant gets a margin.

    A constant 0 is at the bottom, of an axis to 1: most counts and shares cannot be negative.
    """
    low, high = float(values.min()), float(values.max())
    if zero and low == high == 0:
        return 0.0, 1.0
    spread = high - low or abs(high) or 1.0
    if zero and 0 < low < 1.5 * spread:
        low = 0.0
    elif zero and -1.5 * spread < high < 0:
        high = 0.0
    return (low - 0.04 * spread if low < 0 or high == low else low), high + 0.06 * spread


def _extremes(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce to at most MAX_POINTS points, the lowest and highest of each interval, so that spikes remain visible."""
    known = np.isfinite(y)
    if known.sum() <= MAX_POINTS:
        return x, y
    x, y = x[known], y[known]
    kept = set()
    for interval in np.array_split(np.arange(len(y)), MAX_POINTS // 2):
        kept |= {int(interval[y[interval].argmin()]), int(interval[y[interval].argmax()])}
    order = sorted(kept | {len(y) - 1})
    return x[order], y[order]


def _means(values: np.ndarray) -> np.ndarray:
    """Reduce to at most MAX_POINTS means of neighbours; the first and last value are kept."""
    if len(values) <= MAX_POINTS:
        return values
    means = np.array([interval.mean() for interval in np.array_split(values, MAX_POINTS)])
    means[0], means[-1] = values[0], values[-1]
    return means
