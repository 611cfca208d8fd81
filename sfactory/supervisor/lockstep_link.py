"""How the process of a lockstep run talks to its parent (`lockstep_process.py`).

The child has the environments and all workers; the parent has the recorder and the signals. The child waits for the
parent's answer wherever the run depends on it, so that a run is the same as if both were one process.
"""

from __future__ import annotations

import pickle
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from sfactory.envs import EnvError
from sfactory.errors import own_place
from sfactory.monitor.messages import Message
from sfactory.run.outcome import Outcome
from sfactory.shm.slots import RowCounts


class Orders(NamedTuple):
    """The parent's answer to telemetry."""

    evaluated: int
    """Trained steps of the policy that was evaluated last."""
    save_requests: int
    """How often a checkpoint was requested."""
    outcome: Outcome | None
    """Set if the run is to end."""


class Inside(NamedTuple):
    """Environments run outside of the samplers, whose shared memory says where they are."""

    where: str
    what: str
    seconds: float
    """Time limit from now on."""
    setting: str
    """Setting of that limit."""


class End(NamedTuple):
    """How the run ended, and what is to be recorded of it."""

    outcome: Outcome
    row_counts: RowCounts
    rows_by_task: dict[str, int]
    messages: list[Message]


class Link:
    """The parent as the child sees it. EOFError or OSError once the parent is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _tell(self, kind: str, *contents: Any) -> None:
        self._connection.send((kind, contents))

    def _ask(self, kind: str, *contents: Any) -> Any:
        self._tell(kind, *contents)
        return self._connection.recv()

    def begin(self) -> Orders:
        """Announce that everything is built and restored."""
        orders: Orders = self._ask("begin")
        return orders

    def record(self, messages: list[Message], updated: bool) -> Orders:
        """Have telemetry recorded. updated: an update is complete, so that a signal may end the run."""
        orders: Orders = self._ask("record", messages, updated)
        return orders

    def log(self, line: str) -> None:
        """Write a line into the log of the run."""
        self._tell("log", line)

    def board(self) -> dict[str, Any]:
        """The state of the metrics (`Board.state`)."""
        state: dict[str, Any] = self._ask("board")
        return state

    def set_board(self, state: dict[str, Any]) -> None:
        """The inverse of `board`."""
        self._tell("set_board", state)

    def inside(self, inside: Inside | None) -> None:
        """Announce that environments run outside of the samplers; None: no longer."""
        self._tell("inside", inside)

    def end(self, end: End) -> None:
        """Announce the end of the run. What the child does afterwards, it closes environments, has a time limit."""
        self._tell("end", end)

    def refuse(self, sentence: str) -> None:
        """Announce that the run cannot be resumed."""
        self._tell("refuse", sentence)

    def fail(self, error: Exception) -> None:
        """Have the parent raise this error."""
        self._tell("fail", _portable(error))


def _portable(error: Exception) -> Any:
    """The error with its traceback, in a form that another process can load."""
    if isinstance(error, EnvError):  # of its cause only the text arrives
        error = EnvError(f"{error}{own_place(error.__cause__)}", error.fault).with_traceback(error.__traceback__)
    wrapped = ExceptionWithTraceback(error, error.__traceback__)
    try:
        pickle.loads(pickle.dumps(wrapped))
    except Exception:  # an exception with a constructor of its own
        return ExceptionWithTraceback(RuntimeError(f"{type(error).__name__}: {error}"), error.__traceback__)
    return wrapped
