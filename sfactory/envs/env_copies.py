"""The copies of an environment in a group: build, reset, replace and close them one by one."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sfactory.envs.build_clock import build_clock
from sfactory.envs.retry import REPLACE_S, START_S, retried
from sfactory.envs.spec import next_seed
from sfactory.envs.step_values import explained
from sfactory.errors import EnvError, one_line, raised_by_sfactory


class EnvCopies(ABC):
    """Base class of groups of single environments, which are Python objects.

    factory: builds one environment. env_index: the number of the first environment; the factory is then called with the
    number of the environment that it builds, and the environment that replaces a failed one has the number of that one.
    None: without an argument.

    Raises EnvError, with the original message, if a constructor or the first reset fails.
    """

    info_keys: tuple[str, ...] = ()
    """Numbers of `info` that are reported; empty: all (`sfactory.envs.info_numbers`). Set by `make_group`."""

    def __init__(
        self, factory: Callable[..., Any], num_envs: int, seeds: Sequence[int], name: str, env_index: int | None
    ) -> None:
        self.factory, self.num_envs, self.name, self.seeds = factory, num_envs, name, list(seeds)
        self.env_index = env_index
        self._building = build_clock()
        self.at = np.full(1, -1)  # index of the environment that is being stepped; see `sfactory.envs.Group`
        self.beat: Callable[[], None] = lambda: None  # called while the group waits; see `sfactory.envs.Group`
        self.envs: list[Any] = []
        self._seeded = False  # the seeds were used
        try:
            for env in range(num_envs):  # where one was built, a failure of the next may be gone in a moment
                self.envs.append(retried(partial(self._build, env), START_S if self.envs else 0.0))
            if len({id(env) for env in self.envs}) < num_envs:
                raise EnvError(
                    f"{name} returned the same environment twice; every call must build a new one", fault=True
                )
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _first_reset(self, env: int, seed: int | None) -> None:
        """Reset one environment and take its observation. Any exception is a failure of the environment."""

    def _build(self, env: int) -> Any:
        try:
            with self._building(env):
                return self.factory() if self.env_index is None else self.factory(self.env_index + env)
        except EnvError:
            raise
        except Exception as error:
            raise EnvError(f"{self.name} could not be built: {one_line(error)}", fault=True) from error

    def _begin(self, env: int, seed: int | None) -> None:
        """Reset one environment outside of a step. Raises EnvError on failure."""
        try:
            self._first_reset(env, seed)
        except Exception as error:
            reason = one_line(self._reported(env, error, "reset"))
            raise EnvError(f"{self.name} failed at its first reset: {reason}", fault=True) from error

    def _reported(self, env: int, error: Exception, method: str) -> Exception:
        """An exception of an environment as it is reported: with what to change, and where, as far as that is known.

        method: what was called, `reset` or `step`.
        """
        error = explained(error)
        if type(error) is not ValueError or not raised_by_sfactory(error):  # the traceback shows where
            return error
        place = self._place(env, method)
        if not place or place in str(error):
            return error
        return ValueError(f"{error}; see {method}, {place}").with_traceback(error.__traceback__)

    def _place(self, env: int, method: str) -> str:
        """Where a method of an environment is defined, as `my_env.py, line 12`; empty if that is not known."""
        with contextlib.suppress(Exception):
            instance = self.envs[env]
            inner = getattr(instance, "aec_env", instance).unwrapped  # of a conversion by PettingZoo, or of wrappers
            code = getattr(type(inner), method).__code__
            return f"{code.co_filename}, line {code.co_firstlineno}"
        return ""

    def _replace(self, env: int, seconds: float = REPLACE_S) -> None:
        """Replace a failed environment by one with a new seed, and reset it; try for so many seconds."""
        closed = False

        def attempt() -> None:
            nonlocal closed
            if not closed:
                with contextlib.suppress(Exception):  # the first error is reported; later ones do not help
                    self.envs[env].close()
                closed = True
            self.seeds[env] = next_seed(self.seeds[env])
            self.envs[env] = self._build(env)
            closed = False
            self._begin(env, self.seeds[env])

        retried(attempt, seconds, self.beat)

    def _reset_all(self) -> None:
        """Reset every environment. Seeds are used in the first call only."""
        for env in range(self.num_envs):
            self.at[0], begun = env, False
            with contextlib.suppress(EnvError):
                self._begin(env, None if self._seeded else self.seeds[env])
                begun = True
            if not begun:
                self._replace(env, START_S)
        self._seeded = True

    def close(self) -> None:
        """Close every environment; one that cannot does not keep the others open."""
        for index, env in enumerate(self.envs):
            self.at[0] = index
            with contextlib.suppress(Exception):
                env.close()
