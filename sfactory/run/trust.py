"""Import modules that a run's settings name only if the user vouched for them.

A run folder may be downloaded. Its settings may name code (`model.encoder = "mod:Class"`, `env.name = "my_file:MyEnv"`)
beside them in the folder. It is imported only if

    this user trained the run    recorded in the user's state folder under the id of the run, with the names of the
                                 modules and the folder where training began; they are looked for there
    the user says so             `--trust`, in Python `trust=True`
    the process has it already   a module of the user's own script; installed packages and the standard library do not
                                 count, because settings could name any function of them; a pickle made by this process

The same holds for pickles in the folder (`sfactory.pickled`), whose names have a digest of what they contain.

Environments and encoders of this package, and ids that installed packages register with gymnasium, need no trust.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sfactory import pickled
from sfactory.config import Config
from sfactory.envs.python_target import CODE_FOLDER, TAKE_MODULES, code_folder, is_python_target
from sfactory.errors import CommandError, Exit
from sfactory.files import MiB, read_text, replace_text

RUN_ID = "run_id"
"""File of a run folder with the random id of the run."""
_ID = re.compile(r"[0-9a-f]{32}")
WRITES_FILES = ("RecordVideo",)
"""Wrappers of gymnasium that write to a folder of their settings."""
WRITING_FAMILIES = ("faults",)
"""Families of this package that write files which their settings name."""


OURS = ("sfactory", "sfactory_envs")


class Record(NamedTuple):
    """What is known about a run that this user trained."""

    modules: tuple[str, ...]
    folder: Path
    """Where training began."""


def modules_of(config: Config, environments: bool = True) -> dict[str, str]:
    """Name of each module that these settings import -> the setting and value that name it.

    environments: whether environments are built; else only the network is.
    """
    found: dict[str, str] = {}
    encoder, env = config.model.encoder, config.env
    if ":" in encoder:
        found[_module_of(encoder)] = f"model.encoder {encoder}"
    if network := config.model.network:
        found[_module_of(network)] = f"model.network {network}"
    if not environments:
        return found
    for task in env.tasks:
        family, _, env_id = task.partition("/")
        if is_python_target(task):
            found[_module_of(task)] = f"env.name {task}"
        elif family in TAKE_MODULES and ":" in env_id:
            found[env_id.rpartition(":")[0]] = f"env.name {task}"
        elif family in WRITING_FAMILIES:
            found[f"sfactory_envs.{family}"] = f"env.name {task}"
    for wrapper in env.options.wrappers:
        if ":" in wrapper:
            found[_module_of(wrapper)] = f"env.wrappers {wrapper}"
        elif wrapper in WRITES_FILES:
            found[f"gymnasium.wrappers.{wrapper}"] = f"env.wrappers {wrapper}"
    return found


def _module_of(name: str) -> str:
    """The module of `MODULE:NAME`; a pickle is one of its own."""
    return name if pickled.is_pickled(name) else name.rpartition(":")[0]


@contextlib.contextmanager
def kept_code(run_dir: Path, config: Config) -> Iterator[None]:
    """Copy the pickles that these settings name into the run folder, and look for them there within this context."""
    names = list(filter(pickled.is_pickled, modules_of(config)))
    pickled.keep(names, run_dir)
    with pickled.searching(run_dir) if names else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def vouched_code(run_dir: Path, config: Config, trust: bool, command: str, environments: bool = True) -> Iterator[None]:
    """Within this context the modules that the settings of a run name may be imported, from where they belong.

    config: the settings in the folder. trust: whether the user vouches for them now. command: what the user types,
    for the message. environments: whether environments are built. Raises CommandError (exit 2), one line, if the user
    has not.
    """
    modules, record = modules_of(config, environments), read_record(run_dir)
    known = _require_trust(run_dir, modules, record, trust, command)
    with contextlib.ExitStack() as places:
        if any(map(pickled.is_pickled, modules)):
            places.enter_context(pickled.searching(run_dir))
        if modules and known and record is not None:
            places.enter_context(_searching(record.folder))
        yield


@contextlib.contextmanager
def vouched_opponent(run_dir: Path, config: Config, trust: bool, command: str) -> Iterator[None]:
    """Within the `vouched_code` of another run: the network of this one may be imported too, from where it belongs.

    Errors as in `vouched_code`; CommandError (exit 2) as well if another module has the name of its module.
    """
    modules, record = modules_of(config, environments=False), read_record(run_dir)
    known = _require_trust(run_dir, modules, record, trust, command)
    folder = record.folder if known and record is not None else Path.cwd()
    before = list(sys.path)
    if modules and str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: the modules of the other run are found as without this one
    try:
        for name, setting in modules.items():
            if not pickled.is_pickled(name):
                _refuse_hidden(name, setting, folder)
        with pickled.searching(run_dir):
            yield
    finally:
        sys.path[:] = before


def _refuse_hidden(name: str, setting: str, folder: Path) -> None:
    """CommandError (exit 2) if a folder has a module of this name, and another one would be imported instead."""
    top = name.partition(".")[0]
    place = ""
    with contextlib.suppress(ImportError, ValueError):  # there is none; the script itself
        found = importlib.util.find_spec(top)
        place = os.path.realpath(found.origin) if found is not None and found.origin else ""
    own = [os.path.realpath(folder / file) for file in (f"{top}.py", f"{top}/__init__.py")]
    if any(map(os.path.exists, own)) and place not in own:
        text = f"{setting}: {folder} has a module {top}, but {place} would be used; rename one of the two"
        raise CommandError(Exit.USAGE, text)


def _require_trust(run_dir: Path, modules: Mapping[str, str], record: Record | None, trust: bool, command: str) -> bool:
    """Whether this user trained a run with these modules. CommandError if not, and the user does not vouch for them."""
    known = record is not None and set(modules) <= set(record.modules)
    strange = [name for name in modules if not (trust or known or _is_loaded(name))]
    if strange:
        why = "this user has not trained it here" if record is None else "it was trained with other modules"
        raise CommandError(
            Exit.USAGE,
            f"{run_dir} names code that would be run: {modules[strange[0]]}; {why}; if you trust the code: "
            f"{command} {shlex.quote(str(run_dir))} --trust, in Python trust=True",
        )
    return known


def record_run(run_dir: Path, config: Config) -> None:
    """Remember that this user trains a run, with which modules, and from which folder. Nothing without such modules."""
    modules = modules_of(config)
    folder = _records_folder()
    if not modules or folder is None:
        return
    before = read_record(run_dir)
    if before is not None and set(modules) <= set(before.modules):
        return
    with contextlib.suppress(OSError):  # a full disk, a read-only home: the user is asked for --trust
        run_id = _run_id(run_dir)
        if not run_id:
            run_id = secrets.token_hex(16)
            replace_text(run_dir / RUN_ID, run_id + "\n")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = {"modules": sorted(modules), "folder": str(code_folder())}
        replace_text(folder / f"{run_id}.json", json.dumps(content) + "\n")


def read_record(run_dir: Path) -> Record | None:
    """What this user's training of a run recorded; None if there is none."""
    folder, run_id = _records_folder(), _run_id(run_dir)
    if folder is None or not run_id:
        return None
    try:
        content = json.loads(read_text(folder / f"{run_id}.json", MiB))
        return Record(tuple(map(str, content["modules"])), Path(content["folder"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run_id(run_dir: Path) -> str:
    """Id of a run; empty if it has none."""
    try:
        text = read_text(run_dir / RUN_ID, MiB).strip()
    except FileNotFoundError:
        return ""
    return text if _ID.fullmatch(text) else ""


def _records_folder() -> Path | None:
    """Folder of the records; None for a user without a home."""
    if state := os.environ.get("XDG_STATE_HOME"):
        return Path(state) / "sfactory" / "runs"
    home = os.path.expanduser("~")
    return Path(home) / ".local" / "state" / "sfactory" / "runs" if os.path.isabs(home) else None


def _is_loaded(name: str) -> bool:
    """Whether this process has imported a module of the user's own under this name, or made the pickle."""
    if pickled.is_pickled(name):
        return pickled.made_here(name)
    module = sys.modules.get(Path(name).stem if name.endswith(".py") else name)
    file = getattr(module, "__file__", None)
    if file is None or Path(name).stem in ("__main__", "__mp_main__"):
        return False
    import sysconfig  # 5 ms that few commands cost

    if name.endswith(".py") and os.path.realpath(file) != os.path.realpath(code_folder() / name):
        return False
    installed = "-packages/" in file or file.startswith(sysconfig.get_path("stdlib"))
    return not installed and name.partition(".")[0] not in OURS


@contextlib.contextmanager
def _searching(folder: Path) -> Iterator[None]:
    """Look for modules in `folder` instead of the current folder, here and in processes started here."""
    path, before = list(sys.path), os.environ.get(CODE_FOLDER)
    here = os.path.realpath(os.getcwd())
    if os.path.realpath(folder) == here:
        yield
        return
    elsewhere = [place for place in path if os.path.realpath(place or here) != here]
    sys.path[:] = [*elsewhere, str(folder)]
    os.environ[CODE_FOLDER] = str(folder)
    try:
        yield
    finally:
        sys.path[:] = path
        if before is None:
            del os.environ[CODE_FOLDER]
        else:
            os.environ[CODE_FOLDER] = before
