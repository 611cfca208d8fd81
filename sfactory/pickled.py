"""Classes and functions that Python code passed to `sfactory.train`, as files of a run: `cloudpickle:NAME-DIGEST`.

A class or function of a module that other processes can import is named by its import path. A lambda, a closure and
what a notebook or the main script defines is pickled with cloudpickle, as Gymnasium does for its vector environments.
The setting then holds a name with a digest of the pickle, and the run folder the file `code/NAME-DIGEST.pkl`.

A pickle is code. It is loaded only if its digest is that of the name, from the folders that this process has opened
(`searching`): those of runs that this user trained or trusts (`sfactory.run.trust`), and what was pickled here.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sfactory.errors import SettingError
from sfactory.files import MiB, kind, read_bytes

PREFIX = "cloudpickle:"
FOLDER = "code"
"""Of a run folder, with its pickles."""
FOLDERS = "SFACTORY_PICKLES"
"""Environment variable: the folders in which pickles are looked for, here and in processes that are started; a list in
JSON, because a name may hold any character."""
LARGEST = 256 * MiB
DIGITS = 16
LONGEST_NAME = 40
_NAME = re.compile(rf"{PREFIX}\w+-[0-9a-f]{{{DIGITS}}}")
_LOCK = threading.RLock()


def is_pickled(name: str) -> bool:
    """Whether a setting stands for a pickled class or function."""
    return name.startswith(PREFIX)


def name_of(code: Callable[..., Any], setting: str) -> str:
    """The name under which other processes find a class or function: `module:Class`, or that of a pickle made now.

    setting: for messages. Raises SettingError for what cannot be pickled.
    """
    return _import_path(code) or _pickle(code, setting)


def shown_name(name: str) -> str:
    """The name of a class or function for messages: of a pickle without its digest."""
    return name.removeprefix(PREFIX).rpartition("-")[0] if is_pickled(name) else name


def load(name: str) -> Any:
    """The class or function of a name, every time a new one. Raises SettingError if there is no such pickle."""
    import cloudpickle

    wanted = file_name(name)
    file = next((path for folder in _folders() if kind(path := folder / wanted) == "a file"), None)
    if file is None:
        raise SettingError(
            f"{name} was passed to sfactory.train in Python, and its code is in the folder {FOLDER} of that run, which "
            "is not at hand here; use resume, eval or load_policy with the run, or train from Python again"
        )
    data = read_bytes(file, LARGEST)
    if _digest(data) != name.rpartition("-")[2]:
        raise SettingError(f"{file} is not what the run was trained with: its digest differs from that of its name")
    return cloudpickle.loads(data)


def file_name(name: str) -> str:
    """Name of the file of a pickle. Raises SettingError for a name that this module has not made."""
    if not _NAME.fullmatch(name):
        raise SettingError(f"{name}: no name of a pickle; from Python, pass the class or function itself")
    return f"{name.removeprefix(PREFIX)}.pkl"


def made_here(name: str) -> bool:
    """Whether this process has pickled it."""
    return name in _made


def keep(names: Iterable[str], run_dir: Path) -> None:
    """Copy pickles into a run folder, as far as they are not there. Raises SettingError as `load`."""
    for name in names:
        target = run_dir / FOLDER / file_name(name)
        if kind(target) == "a file":
            continue
        found = next((path for folder in _folders() if (path := folder / target.name).is_file()), None)
        if found is None:
            load(name)  # raises
            return
        target.parent.mkdir(exist_ok=True)
        _write(target, read_bytes(found, LARGEST))


@contextlib.contextmanager
def searching(run_dir: Path) -> Iterator[None]:
    """Look for pickles in the folder of a run too, here and in processes that are started meanwhile."""
    folder = str((run_dir / FOLDER).resolve())
    if not os.path.isdir(folder):
        yield
        return
    with _LOCK:
        _set_folders([*map(str, _folders()), folder])
    try:
        yield
    finally:
        with _LOCK:  # other threads may have added and removed theirs meanwhile
            left = list(map(str, _folders()))
            if folder in left:
                left.remove(folder)
            _set_folders(left)


# -- naming and pickling ---------------------------------------------------------------------------------------


def _import_path(code: Callable[..., Any]) -> str:
    """`module:Class` if a new process finds the same object there; else empty."""
    module, name = getattr(code, "__module__", None), getattr(code, "__qualname__", "")
    if not module or module in ("__main__", "__mp_main__", "builtins") or "<" in name:
        return ""
    loaded = sys.modules.get(module)
    if loaded is None or getattr(loaded, "__spec__", None) is None or not getattr(loaded, "__file__", None):
        return ""  # a module that exists in this process only
    found: Any = loaded
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is code else ""


_made: set[str] = set()


def _pickle(code: Callable[..., Any], setting: str) -> str:
    import cloudpickle

    try:
        data = _with_fixed_ids(cloudpickle.dumps(code))
    except Exception as error:  # of any object in a closure
        raise SettingError(
            f"{setting}: {_shown(code)} cannot be sent to worker processes ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); create what it uses inside the function"
        ) from error
    if len(data) > LARGEST:
        raise SettingError(
            f"{setting}: {_shown(code)} has {len(data) / MiB:,.0f} MiB with all that it refers to, at most "
            f"{LARGEST // MiB} are sent to worker processes; load large data inside the function"
        )
    name = f"{PREFIX}{word_of(code)}-{_digest(data)}"
    with _LOCK:
        target = _own_folder() / file_name(name)
        if not target.exists():
            _write(target, data)
        if target.parent not in (folders := _folders()):
            _set_folders(map(str, [*folders, target.parent]))
        _made.add(name)
    return name


def _with_fixed_ids(data: bytes) -> bytes:
    """The pickle with ids of its classes that depend on its contents, so that the same code has the same digest.

    cloudpickle gives every class of the main script a random id, by which it knows a class that it loads twice.
    """
    from cloudpickle import cloudpickle

    known = [one.encode() for one in list(getattr(cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", ()))]
    ids = sorted((one for one in known if one in data), key=data.index)
    plain = data
    for number, one in enumerate(ids):
        plain = plain.replace(one, b"%032x" % number)
    for number, one in enumerate(ids):
        data = data.replace(one, hashlib.sha256(plain + b"%d" % number).hexdigest()[:32].encode())
    return data


def _shown(code: Any) -> str:
    return getattr(code, "__qualname__", type(code).__name__)


def word_of(code: Any) -> str:
    """A word for the name of a class or function in names of files and folders; of a partial, that of its function."""
    if isinstance(code, functools.partial):
        return word_of(code.func)
    last = _shown(code).rpartition(".")[2]
    return re.sub(r"\W+", "_", last).strip("_")[:LONGEST_NAME] or "code"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]


# -- folders ---------------------------------------------------------------------------------------------------


def _folders() -> list[Path]:
    listed = json.loads(os.environ.get(FOLDERS) or "[]")
    return [Path(folder) for folder in listed]


def _set_folders(folders: Iterable[str]) -> None:
    if listed := list(folders):
        os.environ[FOLDERS] = json.dumps(listed)  # ASCII, also for bytes of a name that are not UTF-8
    else:
        os.environ.pop(FOLDERS, None)


@functools.cache
def _own_folder() -> Path:
    """A folder of this process for what it pickles, removed when it ends."""
    folder, process = Path(tempfile.mkdtemp(prefix="sfactory-code-")), os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # and not a copy of it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _write(target: Path, data: bytes) -> None:
    """Create a file in one step."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    temporary.write_bytes(data)
    temporary.replace(target)
