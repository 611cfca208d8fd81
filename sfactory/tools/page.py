"""What the HTML pages share: rendering, tiles, cards with charts and their legends.

A page is one file: no network, no scripts. It is rendered by jinja2 with autoescape, follows the reader's light or dark
setting, and prints. The style is in page_style.j2, the macros of tables and cards in page_parts.j2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfactory.monitor.format import human
from sfactory.tools import svg


class Tile(NamedTuple):
    """A number of the page's header."""

    label: str
    value: str
    note: str


class LegendKey(NamedTuple):
    """A curve in a legend, with its newest value."""

    css_class: str
    name: str
    value: str


@dataclass(frozen=True)
class Chart:
    """A card of the page: SVG markup with a title and a legend."""

    title: str
    svg: str
    keys: tuple[LegendKey, ...] = ()
    wide: bool = False
    narrow: str = ""
    """The same chart for a narrow screen, where a wide one would have tiny letters."""


def render(template: str, content: Mapping[str, Any]) -> str:
    """Return a page as HTML. content: the variables of the template."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(content) + "\n"


def short(value: float) -> str:
    """Format a count as 12.3M, or a dash if it is not known."""
    return human(value) if np.isfinite(value) else "-"


def legend(names: Sequence[str], values: Sequence[float | str], classes: Sequence[str] = ()) -> tuple[LegendKey, ...]:
    """Return the legend of a chart. values: the newest number of each curve, or a text."""
    classes = classes or [svg.css_class(i) for i in range(len(names))]
    texts = [value if isinstance(value, str) else svg.number(value) for value in values]
    return tuple(map(LegendKey, classes, names, texts))
