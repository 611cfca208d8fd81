"""What the process does that reads the specs of a run (`specs.py`). Few imports: the start of a run waits for it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from sfactory.envs import EnvError, EnvOptions, listen_to_builds, make_specs, one_line
from sfactory.supervisor.child_main import flush_output


@dataclass(frozen=True)
class SpecTask:
    """Task of the child process. Sends None whenever an environment is built, and at last the specs or an error."""

    names: Sequence[str]
    options: EnvOptions
    env_index: int
    """Number of each of the environments, which are built one after the other."""
    results: Connection

    def run(self, name: str, fds: tuple[int, ...]) -> int:
        """See `child_main.Task`."""
        send: Callable[[Any], None] = self.results.send
        send(None)
        try:
            with listen_to_builds(lambda env: send(None)):
                result: Any = make_specs(self.names, self.options, self.env_index)
        except Exception as error:
            result = error if hasattr(error, "exit_code") else _internal(error)
        except BaseException as error:  # SystemExit and KeyboardInterrupt, raised by an environment
            result = EnvError(f"{', '.join(self.names)} could not be built: {one_line(error)}", fault=True)
        flush_output()  # first: this process is killed as soon as the result has arrived
        send(result)
        return 0


def _internal(error: Exception) -> RuntimeError:
    """An error that is a bug: its traceback goes to stderr, where it was raised."""
    traceback.print_exception(error)
    return RuntimeError(one_line(error))
