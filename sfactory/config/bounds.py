"""Bounds of single settings, written beside the field: `epochs: Annotated[int, Ge(1)]`.

Standard library only: sampler processes import the schema. Rules across several fields: `sfactory.config.cross_checks`.
"""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

LARGEST = 2**63 - 1
"""Largest number of any setting: counters are words of eight bytes, and a float of this size is a mistake."""
ENCODER_NAMES = ("auto", "mlp", "minatar", "nature", "impala", "cnn")


class Bound(Protocol):
    """A condition on one value."""

    def holds(self, value: Any) -> bool:
        """True where the value is allowed. NaN never is."""

    @property
    def text(self) -> str:
        """What the value must be, as in "it must be at least 1"."""


@dataclass(frozen=True)
class AnyNumber:
    """A finite number that eight bytes can hold: the bound of every number, and of some settings the only one."""

    text: str = "a finite number below 2^63 (9.2e18)"

    def holds(self, value: float) -> bool:
        return -LARGEST <= value <= LARGEST


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
    """value > low."""

    low: float

    def holds(self, value: float) -> bool:
        return value > self.low

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
class Below:
    """low <= value < high, as decays have."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value < self.high

    @property
    def text(self) -> str:
        return f"at least {self.low} and less than {self.high}"


@dataclass(frozen=True)
class Seconds:
    """A time limit that is multiplied by numbers of environments and waited for: 0 < value <= a day."""

    text: str = "greater than 0 and at most 86400 (a day)"

    def holds(self, value: float) -> bool:
        return 0 < value <= 86_400


@dataclass(frozen=True)
class Not:
    """value != excluded."""

    excluded: float

    def holds(self, value: float) -> bool:
        return value != self.excluded

    @property
    def text(self) -> str:
        return f"any number but {self.excluded}"


@dataclass(frozen=True)
class ZeroOr:
    """0, which switches something off, or a value within another bound."""

    bound: Bound

    def holds(self, value: float) -> bool:
        return value == 0 or self.bound.holds(value)

    @property
    def text(self) -> str:
        return f"0 or {self.bound.text}"


@dataclass(frozen=True)
class Each:
    """Every item of a list is within a bound."""

    bound: Bound

    def holds(self, value: Sequence[float]) -> bool:
        return all(self.bound.holds(item) for item in value)

    @property
    def text(self) -> str:
        return f"numbers that are {self.bound.text}"


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
NETWORK = Matches(r"|.*:.*", "module:Class")


@functools.cache
def bounds_of(config_class: Any) -> dict[tuple[str, str], Sequence[Bound]]:
    """(section, field) -> the bounds that are written beside every field of a class of sections; empty: none."""
    found = {}
    for section, cls in typing.get_type_hints(config_class).items():
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in fields(cls):
            found[section, field.name] = getattr(hints[field.name], "__metadata__", ())
    return found


def check_bounds(config: Any) -> None:
    """Raise ValueError for the first field whose value is outside its bounds."""
    config_class: Any = type(config)
    for section, field in bounds_of(config_class):
        check_bound(config_class, section, field, getattr(getattr(config, section), field))


def check_bound(config_class: type, section: str, field: str, value: Any) -> None:
    """Raise ValueError if `value` is outside the bounds of one field, or a number that no setting can have."""
    declared = bounds_of(config_class).get((section, field), ())
    for bound in (*_bounds_of_numbers(value), *declared) if value is not None else ():
        if not bound.holds(value):
            raise ValueError(f"{section}.{field.replace('_', '-')} is {_shown(value)}; it must be {bound.text}")


def _bounds_of_numbers(value: Any) -> Sequence[Bound]:
    if isinstance(value, int | float):
        return (AnyNumber(),)
    return (Each(AnyNumber()),) if isinstance(value, tuple) else ()


def _shown(value: Any) -> str:
    """A value in an error message; a list as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
