"""What a launcher is: the interface between those who run many commands and the places where commands run.

`submit(command, resources)` returns a handle; `handle.poll()` returns the exit code once the command has ended, and
`handle.cancel(signal)` ends it earlier.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

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
