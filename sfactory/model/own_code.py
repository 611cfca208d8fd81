"""Networks of the user's own, named as module:Class or passed from Python: find the class, and make an instance.

Whatever the class does wrong is a SettingError of one line that names the setting, the error with its place, and how
the class is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from sfactory import pickled
from sfactory.errors import SettingError, one_line, own_place

PAGE = "see docs/extending.md"


def make(setting: str, name: str, arguments: tuple[Any, ...], settings: Mapping[str, Any]) -> nn.Module:
    """An instance of the class that a setting names, called with these arguments. Raises SettingError."""
    word = pickled.shown_name(name)
    call = ", ".join([*map(_text, arguments), *(f"{key}={_text(value)}" for key, value in settings.items())])
    try:
        network = find(setting, name)(*arguments, **settings)
    except SettingError:
        raise
    except (Exception, SystemExit) as error:
        raise failed(setting, name, error, f"it is called as {word.rpartition(':')[2]}({call})") from error
    if not isinstance(network, nn.Module):
        raise SettingError(f"{setting} {word}: expected a torch.nn.Module, got {type(network).__name__}; {PAGE}")
    return network


def find(setting: str, name: str) -> Any:
    """The class or function that a setting names. Raises SettingError."""
    if pickled.is_pickled(name):
        return pickled.load(name)
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise failed(setting, name, error, "its module cannot be imported") from error
    if not hasattr(found, attribute):
        raise SettingError(f"{setting} {name}: {module} has no {attribute} ({getattr(found, '__file__', 'a package')})")
    return getattr(found, attribute)


def failed(setting: str, name: str, error: BaseException, doing: str) -> SettingError:
    """The SettingError for an error in the user's own code. doing: what was done with it."""
    return SettingError(f"{setting} {pickled.shown_name(name)}: {one_line(error)}{own_place(error)}; {doing}, {PAGE}")


def out_size(setting: str, name: str, encoder: nn.Module) -> int:
    """The number of features of an encoder, its attribute `out_size`. Raises SettingError if there is none."""
    size = getattr(encoder, "out_size", None)
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        what = "is missing" if size is None else f"is {_text(size)}"
        raise SettingError(
            f"{setting} {pickled.shown_name(name)}: its attribute out_size {what}; expected the number of features "
            f"that forward returns for a row, {PAGE}"
        )
    return size


def _text(value: Any) -> str:
    return repr(value) if len(repr(value)) < 80 else type(value).__name__
