"""Bounds of single settings, written beside the field: `epochs: Annotated[int, Ge(1)]`.

Standard library only: sampler processes import the schema. Rules across several fields: `sfactory.config.cross_checks`.
"""

from __future__ import annotations

import functools
import math
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

ENCODER_NAMES = ("auto", "mlp", "minatar", "nature", "impala", "cnn")


class Bound(Protocol):
    """A condition on one value."""

    def holds(self, value: Any) -> bool:
        """True where the value is allowed. NaN never is."""

    @property
    def text(self) -> str:
        """What the value must be, as in "it must be at least 1"."""


@dataclass(frozen=True)
class Ge:
    """value >= low."""

    low: float

    def holds(self, value: float) -> bool:
        return value >= self.low

    @property
    def text(self) -> str:
        return f"at least {self.low}" if self.low else "0 or more"


@dataclass(frozen=True)
class Gt:
    """low < value < infinity."""

    low: float

    def holds(self, value: float) -> bool:
        return self.low < value < math.inf

    @property
    def text(self) -> str:
        return f"greater than {self.low}"


@dataclass(frozen=True)
class Between:
    """low <= value <= high."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def text(self) -> str:
        return f"between {self.low} and {self.high}"


@dataclass(frozen=True)
class Matches:
    """The whole text matches a regular expression; `text` describes it in words."""

    pattern: str
    text: str

    def holds(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None


DEVICE = Matches(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")
DEVICE_OR_EMPTY = Matches(f"({DEVICE.pattern})?", DEVICE.text)
ENCODER = Matches(rf"{'|'.join(ENCODER_NAMES)}|.*:.*", f"{', '.join(ENCODER_NAMES)} or module:Class")


@functools.cache
def bounds_of(config_class: Any) -> dict[tuple[str, str], Sequence[Bound]]:
    """(section, field) -> bounds of every bounded field of a class of sections."""
    found = {}
    for section, cls in typing.get_type_hints(config_class).items():
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in fields(cls):
            found[section, field.name] = getattr(hints[field.name], "__metadata__", ())
    return {place: bounds for place, bounds in found.items() if bounds}


def check_bounds(config: Any) -> None:
    """Raise ValueError for the first field whose value is outside its bounds."""
    config_class: Any = type(config)
    for section, field in bounds_of(config_class):
        check_bound(config_class, section, field, getattr(getattr(config, section), field))


def check_bound(config_class: type, section: str, field: str, value: Any) -> None:
    """Raise ValueError if `value` is outside the bounds of one field."""
    for bound in bounds_of(config_class).get((section, field), ()):
        if not bound.holds(value):
            raise ValueError(f"{section}.{field.replace('_', '-')} is {value}; it must be {bound.text}")
