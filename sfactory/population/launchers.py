"""Where the runs of a population or a sweep are started: processes here, jobs of SLURM, or tasks of Ray.

    submit(command, resources) -> handle        handle.poll() -> exit code or None        handle.cancel(signal)

A command is a whole run; which of them runs when, and what follows its end, is decided by its caller. What is known
about a run is in its folder, which all machines must see under the same path.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

from sfactory.errors import CommandError, Exit, SettingError
from sfactory.supervisor.process_signals import death_signal

LOST = -int(signal.SIGKILL)
"""Exit code of a command whose machine or worker was lost: the same as that of a process that was killed."""


@dataclass(frozen=True)
class Command:
    """A process to start: its arguments, the file that its output is appended to, and where it runs."""

    name: str
    arguments: Sequence[str]
    output: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    folder: str = field(default_factory=os.getcwd)
    """Working directory; `output` may be relative to it."""


class Resources(NamedTuple):
    """What one command may use."""

    cores: int = 1
    gpus: int = 0


class Handle(Protocol):
    """A command that was submitted."""

    def poll(self) -> int | None:
        """Exit code; None while it waits or runs; negative if it was killed or its machine was lost."""

    def cancel(self, number: int) -> None:
        """Send a signal to a command that runs, on which it saves and exits; forget one that waits."""


class Launcher(Protocol):
    """Starts commands somewhere."""

    reruns: bool
    """Whether a command that was lost, or stopped by the scheduler (exit 75), is run again without being asked."""

    def submit(self, command: Command, resources: Resources) -> Handle:
        """Start a command, or queue it where others decide when it starts."""

    def close(self) -> None:
        """Release what was opened to reach the machines."""


# -- processes on this machine -------------------------------------------------------------------------------


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


def start(command: Command) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own; it gets SIGTERM when the calling process exits."""
    with Path(command.folder, command.output).open("ab") as output:
        return subprocess.Popen(
            list(command.arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=command.folder,
            env=dict(command.environment),
            start_new_session=True,
            preexec_fn=death_signal(signal.SIGTERM),
        )


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
