"""Where the runs of a population or a sweep are started: processes here, jobs of SLURM, or tasks of Ray.

A command is a whole run; which of them runs when, and what follows its end, is decided by its caller. What is known
about a run is in its folder, which all machines must see under the same path. Interface: `population.commands`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from sfactory.errors import CommandError, Exit, SettingError
from sfactory.population.commands import Command, Handle, Launcher, Resources, start


class LocalLauncher:
    """Processes of this machine, each in a session of its own: a Ctrl-C of the terminal is forwarded once, by us."""

    reruns = False

    def submit(self, command: Command, resources: Resources) -> Handle:
        """Start the process. It gets SIGTERM when this process exits."""
        return LocalHandle(start(command))

    def close(self) -> None:
        """Nothing is open."""


class LocalHandle:
    """A process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        code = self.process.poll()
        return None if code is None else int(code)

    def cancel(self, number: int) -> None:
        """Send the signal to the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


# -- choosing one --------------------------------------------------------------------------------------------


def _local(folder: Path, parallel: int, resources: Resources, options: Mapping[str, str]) -> Launcher:
    return LocalLauncher()


def _slurm(folder: Path, parallel: int, resources: Resources, options: Mapping[str, str]) -> Launcher:
    from sfactory.population.slurm import SlurmLauncher

    return SlurmLauncher(folder / "jobs", options)


def _ray(folder: Path, parallel: int, resources: Resources, options: Mapping[str, str]) -> Launcher:
    from sfactory.population.ray_tasks import RayLauncher

    return RayLauncher(parallel, resources)


LAUNCHERS: dict[str, Callable[[Path, int, Resources, Mapping[str, str]], Launcher]] = {
    "local": _local,
    "slurm": _slurm,
    "ray": _ray,
}
"""Name -> function of the folder of the runs, how many run at the same time, what each may use, and options."""
PACKAGES = {"slurm": "submitit", "ray": "ray"}
"""Launcher -> the package it needs; the extra has the name of the launcher."""


def require_launcher(name: str, options: Sequence[str]) -> dict[str, str]:
    """The options `NAME=VALUE` of a launcher. CommandError or SettingError (exit 2) if it cannot be used."""
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        raise CommandError(
            Exit.USAGE, f"--launcher {name} needs {package}, which is not installed: pip install 'sfactory[{name}]'"
        )
    if options and name != "slurm":
        raise CommandError(Exit.USAGE, f"--slurm {options[0]}: only --launcher slurm has such options")
    found = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise SettingError(f"--slurm {text}: expected NAME=VALUE, for example partition=gpu")
        found[key] = value
    return found
