"""Load a class or function of the user's own: `my_file:MyEnv`, `sub/my_file.py:MyEnv`, `package.module:factory`.

Environments, wrappers and modules that register ids with gymnasium are found in this way. A file of the current folder
is preferred to an installed module of the same name. `cloudpickle:NAME-DIGEST` is what was passed to `sfactory.train`
as an object (`sfactory.pickled`). This module does not import gymnasium.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sfactory import pickled
from sfactory.errors import EnvError, SettingError, did_you_mean, one_line, suggest

KEYWORD = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
CODE_FOLDER = "SFACTORY_CODE_FOLDER"
"""Environment variable: the folder in which modules are looked for instead of the current one (`run.trust`). Processes
that are started meanwhile look there too."""
INDEX = "{index}"
"""In text settings, replaced by the number of the environment."""


TAKE_MODULES = ("gymnasium", "pettingzoo")
"""Families whose ids may name a module of the user's own."""


def is_python_target(name: str) -> bool:
    """Whether a name stands for a class or function of the user's own, and not for FAMILY/ID.

    It has a colon before the first slash (`my_file:MyEnv`), or after the name of a file (`sub/my_file.py:MyEnv`);
    `gymnasium/my_file.py:Mine-v0` and `pettingzoo/my_file.py:MyEnv` are ids.
    """
    family, _, rest = name.partition("/")
    return ":" in family or (rest.rpartition(":")[0].endswith(".py") and family not in TAKE_MODULES)


def load_target(target: str) -> Callable[..., Any]:
    """Import `MODULE:NAME` or `FILE.py:NAME` and return the class or function.

    Raises EnvError, one line, for a module or name that does not exist, and for what cannot be called. It has `fault`
    set if the module itself raises an error.
    """
    if pickled.is_pickled(target):
        return _unpickled(target)
    module_name, _, attribute = target.rpartition(":")
    if not module_name or not attribute:
        raise EnvError(f"{target}: write MODULE:NAME, for example my_file:MyEnv")
    if module_name in ("__main__", "__mp_main__"):
        raise EnvError(f"{target}: {not_in_main(attribute)}")
    value: Any = import_module(module_name, target)
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            known = [name for name in vars(value) if not name.startswith("_") and callable(getattr(value, name))]
            raise EnvError(f"{target}: {module_name} has no {attribute}{suggest(part, known)}") from error
    if not callable(value):
        raise EnvError(
            f"{target}: {attribute} is an object of type {type(value).__name__}; name a class or a function, which is "
            "called for every copy"
        )
    return value


def _unpickled(target: str) -> Callable[..., Any]:
    """The class or function of a pickle."""
    if (folder := str(code_folder())) not in sys.path:
        sys.path.append(folder)  # for the modules that it refers to
    try:
        found: Callable[..., Any] = pickled.load(target)
        return found
    except SettingError as error:
        raise EnvError(str(error)) from error
    except ModuleNotFoundError as error:
        raise EnvError(f"{target} uses {error.name}, which is not installed and not in {folder}") from error
    except Exception as error:
        raise EnvError(f"{target} cannot be loaded: {one_line(error)}{_place(error)}", fault=True) from error


def not_in_main(attribute: str) -> str:
    """What to do about code that exists in the main script only."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    name = "" if file is None or not file.endswith(".py") else f", not in {Path(file).name}"
    return (
        f"worker processes do not run the main script; put {attribute} into a file of its own{name}, for example "
        "my_envs.py, and name that file"
    )


def import_module(name: str, target: str) -> ModuleType:
    """Import a module or a file ending in .py, from the current folder or the installed packages; errors as above."""
    folder = code_folder()
    if name.endswith(".py"):
        file: Path | None = folder / name
        if not (folder / name).is_file():
            known = [str(Path(name).parent / path.name) for path in _modules(Path(name).parent)]
            raise EnvError(f"{target}: no file {name} in {folder}{did_you_mean(name, known)}")
    else:
        file = next((path for path in _files_of(name, folder) if path.is_file()), None)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))  # for what the module imports; last, so that nothing installed is hidden
    try:
        return importlib.import_module(name) if file is None else _import_file(file.resolve())
    except ModuleNotFoundError as error:
        if file is None and error.name and f"{name}.".startswith(f"{error.name}."):
            known = [path.stem for path in _modules(Path())]
            raise EnvError(
                f"{target}: no module {name}: there is no {name.replace('.', '/')}.py in {folder}, and no package of "
                f"this name is installed{did_you_mean(name, known)}"
            ) from error
        raise EnvError(f"{target}: {name} imports {error.name}, which is not installed") from error
    except Exception as error:
        raise EnvError(f"{target}: {name} cannot be imported: {one_line(error)}{_place(error)}", fault=True) from error


def code_folder() -> Path:
    """The folder in which modules of the user's own are looked for first."""
    return Path(os.environ.get(CODE_FOLDER) or Path.cwd())


def asks_for(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a class or function has a parameter of this name.

    A class whose `__init__` passes `**kwargs` on also has the parameters of the classes that it inherits from.
    """
    return _takes(function, parameter) is True


def accepts(function: Callable[..., Any], parameter: str) -> bool:
    """Whether a class or function has a parameter of this name, or may pass it on with other `**kwargs`."""
    return _takes(function, parameter) is not False


def _takes(function: Callable[..., Any], parameter: str) -> bool | None:
    """Whether there is a parameter of this name; None if that cannot be known because of `**kwargs`."""
    if isinstance(function, functools.partial):
        return False if parameter in function.keywords else _takes(function.func, parameter)
    calls: list[Any] = [function]
    if inspect.isclass(function):
        parents = [parent.__dict__ for parent in function.__mro__ if parent is not object]
        calls = [parent["__init__"] for parent in parents if "__init__" in parent]
    for call in calls:
        try:
            parameters = inspect.signature(call).parameters
        except (TypeError, ValueError):  # some functions of C extensions have no signature
            return None
        if parameter in parameters:
            return parameters[parameter].kind in KEYWORD
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return False
    return None if calls else False


def settings_of_copy(function: Callable[..., Any], settings: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the settings of one copy: `{index}` in text is replaced, `env_index` is added if it is asked for."""
    own = {name: _replaced(value, index) for name, value in settings.items()}
    if "env_index" not in own and asks_for(function, "env_index"):
        own["env_index"] = index
    return own


def differs_by_copy(function: Callable[..., Any], settings: Mapping[str, Any]) -> bool:
    """Whether copies receive different arguments."""
    return settings_of_copy(function, settings, 0) != settings_of_copy(function, settings, 1)


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], what: str, setting: str, positional: int = 0
) -> None:
    """Raise EnvError if a class or function cannot be called with these keyword arguments.

    what: for the message. setting: the flag of its arguments, `--env.settings`. positional: arguments before them.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) < positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise EnvError(f"{what} takes {len(places)} arguments, it must take the environment first")
    parameters = parameters[positional:]
    known = {p.name: p for p in parameters if p.kind in KEYWORD}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in arguments:
            if name not in known:
                raise EnvError(f"{what} takes no {name!r}{suggest(name, known.keys() - arguments.keys())}")
    for name, parameter in known.items():
        if name not in arguments and parameter.default is parameter.empty:
            flag = f"{setting}.{name.replace('_', '-')}"
            raise EnvError(f"{what} needs {name!r}: {flag} VALUE, in Python {_keyword(setting, name)}")


def _keyword(setting: str, name: str) -> str:
    """An argument as `sfactory.train` takes it: `--env.settings` and a name -> env={'settings': {'name': VALUE}}."""
    section, *keys = setting.lstrip("-").split(".")
    keys[0] = keys[0].replace("-", "_")
    opening = "".join(f"{{{key!r}: " for key in (*keys, name))
    return f"{section}={opening}VALUE{'}' * (len(keys) + 1)}"


def _replaced(value: Any, index: int) -> Any:
    """A setting with `{index}` replaced in every text of it."""
    if isinstance(value, str):
        return value.replace(INDEX, str(index))
    if isinstance(value, Mapping):
        return {key: _replaced(one, index) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(one, index) for one in value]
    return value


def _files_of(name: str, folder: Path) -> tuple[Path, ...]:
    """Files of the current folder that a module may be in. Modules of packages are imported as usual."""
    return () if "." in name else (folder / f"{name}.py",)


def _modules(folder: Path) -> list[Path]:
    """Python files of a folder, which may not exist."""
    return sorted((code_folder() / folder).glob("*.py"))


_IMPORTING = threading.RLock()
"""A module is in `sys.modules` before it is complete; other threads wait."""


def _import_file(file: Path) -> ModuleType:
    """Import a file under its own name; under another one if a module of this name is loaded already."""
    if (folder := str(file.parent)) not in sys.path:
        sys.path.append(folder)  # for the files beside it
    with _IMPORTING:
        name = file.stem
        loaded = sys.modules.get(name)
        if (loaded is not None and not _is_file(loaded, file)) or _is_installed(name, file):
            name = f"{name}_{zlib.crc32(str(file).encode()):08x}"
            loaded = sys.modules.get(name)
        if loaded is not None:
            return loaded
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def _is_installed(name: str, file: Path) -> bool:
    """Whether another module of this name may be imported later, as `queue` for a file queue.py."""
    if name in sys.modules:
        return False
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return found is not None and os.path.realpath(found.origin or "") != os.path.realpath(file)


def _is_file(module: ModuleType, file: Path) -> bool:
    loaded = getattr(module, "__file__", None)
    return loaded is not None and os.path.realpath(loaded) == os.path.realpath(file)


def _place(error: Exception) -> str:
    """File and line in which an error was raised, for the end of a message."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:  # its message has the line
        return ""
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
