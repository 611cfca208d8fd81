"""Values of an environment's own settings: what can be stored, and how text on a command line is read.

A value is None, a boolean, a number, text, a list of values, or a table of values with text keys. Every source gives
the same values: the command line (`from_text`), TOML files and Python (`plain`). TOML has no null: there None is
written as the table `{python = "None"}` (`for_toml`). Standard library only.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import json
import math
import numbers
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from sfactory.errors import SettingError

NONE = MappingProxyType({"python": "None"})
"""How None is written in TOML. A table with exactly this key and value is None in every source."""
DEPTH = 64
"""Lists and tables may contain each other to this depth."""
MOST_DIGITS = 4000
"""Digits of a number; Python has the limit 4300 for those it writes."""
UNITS = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words for booleans, in any case; settings of our own take the same."""

_DATES = (datetime.date, datetime.time, datetime.timedelta)
_WORDS: dict[str, Any] = {**SWITCHES, "none": None, "null": None, "nan": math.nan}
_WORDS |= {"inf": math.inf, "+inf": math.inf, "-inf": -math.inf}
_DIGITS = r"\d+(?:_\d+)*"
_WHOLE = re.compile(rf"[+-]?(?:{_DIGITS}|0[xX][\da-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+)", re.ASCII)
_DECIMAL = re.compile(rf"[+-]?(?:{_DIGITS}\.?(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][+-]?\d+)?", re.ASCII)
_LEADING_ZERO = re.compile(r"[+-]?0\d")
_TEMPLATE = re.compile(r"\{[A-Za-z_]\w*\}")  # text such as {index}, which is filled in for every copy of an environment
_CLOSING = {"{": "}", "[": "]", "(": ")"}


# -- from Python and TOML ------------------------------------------------------------------------------------


def plain(value: Any, place: str) -> Any:
    """A value as it can be stored: numbers of every library become int and float, arrays and tuples become lists.

    place: where the value stands, as `env.settings.x`. Raises SettingError, naming it, for everything else.
    """
    return _plain(value, place, 0)


def _plain(value: Any, place: str, depth: int) -> Any:
    if depth > DEPTH:
        raise SettingError(f"{place[:60]}...: lists and tables contain each other to a depth of more than {DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(str.__str__(value), place)
    if isinstance(value, numbers.Integral):
        return _whole(int(value), place)
    if isinstance(value, float) or (isinstance(value, numbers.Real) and hasattr(value, "dtype")):
        return float(value)
    if isinstance(value, Mapping):
        return None if is_none(value) else plain_table(value, place, depth)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{number}]", depth + 1) for number, item in enumerate(value)]
    if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
        return _text(os.fspath(value), place)
    if hasattr(value, "dtype") and hasattr(value, "tolist") and _kind(value) not in ("m", "M", "V"):
        items = value.tolist()  # of NumPy or torch; a scalar for an array without dimensions
        if not hasattr(items, "dtype"):
            return _plain(items, place, depth)
    what, advice = _refused(value)
    raise SettingError(f"{place}: {what} cannot be stored; {advice}")


def _kind(array: Any) -> str:
    """NumPy's letter for the kind of an array's numbers; empty for arrays of other libraries."""
    return str(getattr(getattr(array, "dtype", None), "kind", ""))


def plain_table(value: Mapping[Any, Any], place: str, depth: int = 0) -> dict[str, Any]:
    """A table as it can be stored; as `plain`, without the table that stands for None."""
    found = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise SettingError(f"{place}: a table with the key {key!r} cannot be stored; keys must be text")
        found[_text(str.__str__(key), place)] = _plain(item, f"{place}.{key}", depth + 1)
    return found


def _text(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SettingError(f"{place}: {text!r} cannot be stored; it is not valid Unicode") from None
    return text


def _whole(value: int, place: str) -> int:
    try:
        str(value)
    except ValueError:  # Python's limit on the digits of numbers in text
        raise SettingError(f"{place}: a number with so many digits cannot be stored") from None
    return value


def _refused(value: Any) -> tuple[str, str]:
    """What a value is, in words, and what to write instead."""
    kinds: tuple[tuple[Callable[[Any], bool], str, str], ...] = (
        (lambda v: isinstance(v, type), "a class", "name it as text, and let the environment find it"),
        (callable, "a function", "name it as text, or write a wrapper of your own (env.wrappers)"),
        (lambda v: isinstance(v, set | frozenset), "a set", "write a list"),
        (lambda v: isinstance(v, bytes | bytearray | memoryview), "bytes", "write text or a list of numbers"),
        (lambda v: isinstance(v, complex) or _kind(v) == "c", "a complex number", "write a list of two numbers"),
        (lambda v: isinstance(v, _DATES) or _kind(v) in ("m", "M"), "a date or time", "write it as text, in quotes"),
        (lambda v: isinstance(v, Decimal | Fraction), f"a {type(value).__name__}", "write it as a float or as text"),
    )
    for holds, what, advice in kinds:
        if holds(value):
            return what, advice
    return (
        f"an object of the class {type(value).__name__}",
        "values are numbers, text, booleans, None, and lists and tables of these",
    )


def is_none(value: Any) -> bool:
    """Whether a value from a file is the table that stands for None."""
    return isinstance(value, Mapping) and dict(value) == dict(NONE)


def for_toml(value: Any) -> Any:
    """A plain value with None written as `{python = "None"}`; `plain` reads it back."""
    if value is None:
        return dict(NONE)
    if isinstance(value, dict):
        return {key: for_toml(item) for key, item in value.items()}
    return [for_toml(item) for item in value] if isinstance(value, list) else value


# -- from a command line -------------------------------------------------------------------------------------


def from_text(text: str) -> Any:
    """The value of text on a command line, before `plain`. docs/environments.md has the table of the rules.

    Raises SettingError for text in brackets that is neither JSON, TOML nor a Python literal.
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    found = _number(text)
    if found is not None:
        return found
    if text[:1] in ("'", '"'):
        for read in (_json, _toml):
            with contextlib.suppress(ValueError, RecursionError):
                return read(text)
    elif text[:1] in _CLOSING and not _TEMPLATE.match(text):
        return _in_brackets(text)
    return text


def _number(text: str) -> int | float | None:
    """Text as a number; None if it is none. Leading zeros belong to text: 007 is a name."""
    if _LEADING_ZERO.match(text):
        return None
    if len(text) > MOST_DIGITS:
        return None
    with contextlib.suppress(ValueError, ArithmeticError):  # underscores in the wrong places, too many digits
        if _WHOLE.fullmatch(text):
            return int(text, 0)
        if _DECIMAL.fullmatch(text):
            return float(text)
        if text[-1:] in UNITS and _DECIMAL.fullmatch(text[:-1]):
            exact = Decimal(text[:-1]) * UNITS[text[-1]]
            if exact.adjusted() > MOST_DIGITS:  # the digits of 1e999999k would fill the memory
                return None
            return int(exact) if exact == int(exact) else float(exact)
    return None


def _in_brackets(text: str) -> Any:
    for read in (_json, _toml, _python):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return read(text)
    shown = text if len(text) <= 60 else text[:57] + "..."
    raise SettingError(
        f"{shown!r} is neither JSON nor TOML nor a Python literal; write text in quotes: {_quoted(shown)}"
    )


def _json(text: str) -> Any:
    return json.loads(text)


def _toml(text: str) -> Any:
    alone, listed = tomllib.loads(f"v = {text}"), tomllib.loads(f"v = [{text}]")  # a comment would hide the bracket
    if len(alone) != 1 or len(listed) != 1 or len(listed["v"]) != 1:
        raise ValueError("more than one value")
    return alone["v"]


def _python(text: str) -> Any:
    if not text.endswith(_CLOSING[text[0]]):  # a comment
        raise ValueError("more than one value")
    return ast.literal_eval(text)


def _quoted(text: str) -> str:
    return "'" + json.dumps(text, ensure_ascii=False) + "'"


def as_text(value: Any) -> str:
    """A plain value as it is typed on a command line: `from_text` reads it back."""
    if isinstance(value, str):
        with contextlib.suppress(SettingError):
            if same(from_text(value), value):
                return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf, nan
    return json.dumps(value, ensure_ascii=False)


# -- comparing -----------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal in value and type: 1, 1.0 and True differ, nan equals nan."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(item, other[key]) for key, item in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (one != one and other != other)
