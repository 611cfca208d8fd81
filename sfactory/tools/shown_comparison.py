"""A comparison that `print` shows as the table of `sfactory compare`."""

from __future__ import annotations

from dataclasses import fields

from sfactory.tools.compare import text
from sfactory.tools.comparison import Comparison


class ShownComparison(Comparison):
    """A comparison whose text is its table."""

    def __repr__(self) -> str:
        return text(self)

    __str__ = __repr__


def shown(found: Comparison) -> ShownComparison:
    """The same comparison with its table as text."""
    return ShownComparison(**{field.name: getattr(found, field.name) for field in fields(found)})
