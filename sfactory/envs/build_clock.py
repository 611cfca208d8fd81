"""Report which environment of a group is being built, so that each has time of its own.

A group calls `build_clock()` in its constructor and wraps the building and the first reset of each environment:

    building = build_clock()
    with building(3):
        env = make_one()

The code that builds the group listens and sets a time limit. A group that does not report is given the time of all its
environments together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

BUILT = -1
"""Given to a listener when an environment is ready, or has failed."""

Listener = Callable[[int], None]
"""Called with the index of an environment before it is built or first reset, and with BUILT afterwards."""

_listener: ContextVar[Listener] = ContextVar("listener", default=lambda env: None)


@contextmanager
def listen_to_builds(listener: Listener) -> Iterator[None]:
    """Groups that are constructed in this context report to `listener`, also when they rebuild an environment later."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def build_clock() -> Callable[[int], AbstractContextManager[None]]:
    """The context manager with which a group reports the environment that it builds."""
    listener = _listener.get()

    @contextmanager
    def building(env: int) -> Iterator[None]:
        listener(env)
        try:
            yield
        finally:
            listener(BUILT)

    return building
