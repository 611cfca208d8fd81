"""A group of environments whose calls are announced to a clock, and whose exceptions are the environment's faults."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from sfactory.envs import EnvOptions, EnvSpec, Group, Settings, Step, listen_to_builds, make_spec
from sfactory.envs.build_clock import BUILT
from sfactory.errors import EnvError, one_line


class EnvClock(Protocol):
    """Is told before environments are called, with the number of those that the call covers, and afterwards."""

    def own(self) -> None:
        """The call has returned."""

    def build(self, environments: int) -> None:
        """They are built, reset for the first time, or closed."""

    def step(self, environments: int) -> None:
        """They are stepped."""


class NoClock:
    """Limits no time."""

    def own(self) -> None: ...
    def build(self, environments: int) -> None: ...
    def step(self, environments: int) -> None: ...


NO_CLOCK = NoClock()


class EnvCallError(EnvError):
    """A call of a group raised an exception, which is the cause of this one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, fault=True)


class WatchedGroup:
    """Group that tells a clock before each call. Raises EnvError (fault) for every exception of the environments."""

    def __init__(self, make: Callable[[], Group], num_envs: int, clock: EnvClock) -> None:
        """make: builds a group of `num_envs` environments."""
        self.num_envs, self._clock, self._covered = num_envs, clock, num_envs
        self._tell: Callable[[int], None] = clock.build
        group: Any = None
        with self._building():
            group = make()
        self.group = group
        self.spec: EnvSpec = self.group.spec
        one_by_one = hasattr(self.group, "at")
        self._covered = 1 if one_by_one or getattr(self.group, "at_once", False) else num_envs
        if one_by_one:
            self.group.at = _AtEach(lambda: self._tell(1))
        if hasattr(self.group, "beat"):
            self.group.beat = lambda: self._tell(self._covered)

    def reset(self) -> dict[str, np.ndarray]:
        with self._building(), self._faults("reset"):
            obs: dict[str, np.ndarray] = self.group.reset()
            return obs

    def step(self, action: dict[str, np.ndarray]) -> Step:
        self._tell = self._clock.step
        self._tell(self._covered)
        with listen_to_builds(self._on_build), self._faults("step"):
            step: Step = self.group.step(action)
        self._clock.own()
        return step

    def close(self) -> None:
        with self._building(), self._faults("close"):
            self.group.close()

    def render(self, env: int) -> np.ndarray:
        self._clock.step(1)
        with self._faults("render"):
            frame: np.ndarray = self.group.render(env)
        self._clock.own()
        return frame

    @property
    def render_fps(self) -> float:
        return float(self.group.render_fps)

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """Environments are built, reset or closed; those that report it have a time limit each."""
        self._tell = self._clock.build
        self._tell(self.num_envs)
        with listen_to_builds(self._on_build):
            yield
        self._clock.own()

    def _on_build(self, env: int) -> None:
        """The group builds one environment, or has built it."""
        if env == BUILT:
            self._tell(self._covered)
        else:
            self._clock.build(1)

    @contextlib.contextmanager
    def _faults(self, call: str) -> Iterator[None]:
        try:
            yield
        except EnvError:
            raise
        except BaseException as error:  # also SystemExit and KeyboardInterrupt, raised by an environment
            raise EnvCallError(f"{self.spec.name}: {call} raised {one_line(error)}") from error


class _AtEach:
    """Takes the place of a group's array `at`: calls a function before each environment is called."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def __setitem__(self, index: int, env: int) -> None:
        self._function()


def watched_spec(task: str, options: EnvOptions | Settings, env_index: int, clock: EnvClock) -> EnvSpec:
    """Build one environment, read its spec and close it; tells the clock."""
    clock.build(1)
    with listen_to_builds(lambda env: clock.build(1)):
        spec = make_spec(task, options, env_index)
    clock.own()
    return spec
