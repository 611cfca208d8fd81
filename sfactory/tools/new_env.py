"""Write the file of a new environment, which works and is to be changed: new_env.py.j2."""

from __future__ import annotations

import keyword
import sys
from pathlib import Path
from typing import NamedTuple

from sfactory.config.presets import is_python_target
from sfactory.errors import CommandError, Exit

TEMPLATE = Path(__file__).with_name("new_env.py.j2")
CLASS = "MyEnv"
"""Name of the class if none is given."""
IMPORTED = ("gymnasium", "numpy", "sfactory", "torch")
USED = ("Box", "Discrete", "gymnasium", "np")
"""Names that the file itself imports."""


class NewEnv(NamedTuple):
    """The file of an environment and how commands name it."""

    path: Path
    name: str
    """Of the class."""
    target: str


def parse_new_env(word: str) -> NewEnv:
    """The file and class of `my_env.py:Catch`; `.py` and the class may be left out. CommandError for other names."""
    file, _, name = word.partition(":")
    name = name or CLASS
    path = Path(file if file.endswith(".py") else f"{file}.py")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise CommandError(Exit.USAGE, f"{word}: {name} cannot be the name of a class; example: my_env.py:Catch")
    if name in USED:
        raise CommandError(Exit.USAGE, f"{word}: {name} is imported in the file; take another name for the class")
    if not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise CommandError(Exit.USAGE, f"{word}: {path.name} cannot be imported; example: my_env.py:Catch")
    if path.stem in sys.stdlib_module_names or path.stem in IMPORTED:
        raise CommandError(Exit.USAGE, f"{word}: {path.stem} is the name of an installed module; take another name")
    target = f"{file if file == path.stem else path}:{name}"  # a module only in the current folder
    if not is_python_target(target):
        raise CommandError(
            Exit.USAGE, f"{word}: {path.parent} is the name of a family of environments; take another folder"
        )
    return NewEnv(path, name, target)


def source(name: str) -> str:
    """The text of the file, with this name of the class."""
    import jinja2

    return jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True, autoescape=False).render(name=name)


def write_new_env(env: NewEnv) -> None:
    """Write the file. CommandError if there is one, or its folder is a file; OSError if it cannot be written."""
    text = source(env.name)
    try:
        env.path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CommandError(Exit.USAGE, f"{env.path.parent} is not a folder") from None
    try:
        file = env.path.open("x", encoding="utf-8")
    except FileExistsError:
        raise CommandError(Exit.USAGE, f"{env.path} exists; it was not changed. Choose another name") from None
    try:
        with file:
            file.write(text)
    except BaseException:
        env.path.unlink(missing_ok=True)  # an empty file would be kept as if somebody had written it
        raise
