"""Wrappers around single environments: `env.wrappers` and their arguments, `env.wrapper_settings`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from sfactory.envs.agent_group import has_agents
from sfactory.envs.options import EnvOptions
from sfactory.envs.python_target import check_arguments, load_target, settings_of_copy
from sfactory.errors import EnvError, one_line, suggest


class Wrappers:
    """Wraps a single environment in everything that `env.wrappers` names. False if it names nothing.

    A name with a colon is a class or function of the user's own (`my_file:wrap`), which takes the environment and
    returns one; any other name is that of a wrapper of `gymnasium.wrappers`. For several agents there are the user's
    own, from a ParallelEnv to a ParallelEnv, and `SmallPictures`. Raises EnvError for a name that does not exist, and
    for arguments that a wrapper does not take or lacks.
    """

    def __init__(self, options: EnvOptions | None = None) -> None:
        options = options or EnvOptions()
        self.layers: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []
        unused = dict(options.wrapper_settings)
        for name in options.wrappers:
            settings: Any = {}
            for key in (name, name.rpartition(":")[2]):  # `my_file:wrap`, or `wrap` alone
                if key in options.wrapper_settings:
                    settings = options.wrapper_settings[key]
                    unused.pop(key, None)
                    break
            if not isinstance(settings, dict):
                raise EnvError(f"env.wrapper-settings {key}: expected a table of arguments, got {settings!r}")
            self.layers.append((name, _find(name), settings))
        for name in unused:
            hint = suggest(name, options.wrappers) or "; env.wrappers is empty"
            raise EnvError(f"env.wrapper-settings {name}: env.wrappers names no such wrapper{hint}")

    def __bool__(self) -> bool:
        return bool(self.layers)

    def __call__(self, env: Any, index: int) -> Any:
        """Wrap the environment with the number `index`, the first wrapper innermost."""
        import gymnasium

        several = has_agents(env)
        kind = sys.modules["pettingzoo"].ParallelEnv if several else gymnasium.Env
        for name, wrapper, settings in self.layers:
            if ":" not in name and several != (name == SMALL_PICTURES):
                raise EnvError(f"env.wrappers {name}: {_FOR_OTHERS[several]}")
            arguments = settings_of_copy(wrapper, settings, index)
            flag = f"--env.wrapper-settings.{name.rpartition(':')[2]}"
            check_arguments(wrapper, arguments, f"the wrapper {name}", flag, positional=1)
            try:
                wrapped = wrapper(env, **arguments)
            except EnvError:
                raise
            except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
                raise EnvError(f"the wrapper {name} needs a package: {one_line(error)}") from error
            except Exception as error:
                raise EnvError(f"the wrapper {name} could not be built: {one_line(error)}", fault=True) from error
            if not isinstance(wrapped, kind):
                expected = "a ParallelEnv" if several else "a gymnasium.Env"
                raise EnvError(
                    f"the wrapper {name} returned an object of type {type(wrapped).__name__}, expected {expected}"
                )
            env = wrapped
        return env

    @property
    def protocol(self) -> str:
        """The wrappers and their arguments, for the evaluation protocol: wrappers may change rewards."""
        return ", ".join(
            f"{name}({', '.join(f'{key}={settings[key]}' for key in sorted(settings))})" if settings else name
            for name, _, settings in self.layers
        )


SMALL_PICTURES = "SmallPictures"
_FOR_OTHERS = {
    True: f"gymnasium's wrappers are for one agent; for several there is {SMALL_PICTURES}, or name a class or function "
    "of your own, MODULE:NAME, that takes a ParallelEnv and returns one",
    False: "it is for environments with several agents; for one there are gymnasium's wrappers, as ResizeObservation",
}
"""Why a wrapper does not fit, by whether the environment has several agents."""


def _find(name: str) -> Callable[..., Any]:
    """The class or function that a name of `env.wrappers` stands for."""
    if ":" in name:
        return load_target(name)
    if name != SMALL_PICTURES:
        return _of_gymnasium(name)
    try:
        from sfactory.envs.small_pictures import SmallPictures
    except ModuleNotFoundError as error:
        raise EnvError(f"env.wrappers {name} needs {error.name}: pip install 'sfactory[pettingzoo]'") from error
    return SmallPictures


def _of_gymnasium(name: str) -> Callable[..., Any]:
    """A wrapper of `gymnasium.wrappers`, by its name."""
    import gymnasium

    wrapper: type[Any] | None = None
    if name in gymnasium.wrappers.__all__:
        try:
            wrapper = getattr(gymnasium.wrappers, name)
        except ImportError as error:
            raise EnvError(f"env.wrappers {name}: it needs {error.name or error}, which is not installed") from error
    if wrapper is None or not inspect.isclass(wrapper):
        known = set(gymnasium.wrappers.__all__) - {"vector"}
        raise EnvError(
            f"env.wrappers {name}: gymnasium.wrappers has no such wrapper{suggest(name, known)}; write MODULE:NAME for "
            "one of your own"
        )

    found: Callable[..., Any] = wrapper

    def wrap(env: Any, **settings: Any) -> Any:
        return found(env, **{key: _tuples(value) for key, value in settings.items()})

    functools.update_wrapper(wrap, wrapper, updated=())  # its signature
    return wrap


def _tuples(value: Any) -> Any:
    """Lists as tuples, which gymnasium's wrappers expect for shapes; TOML and JSON have lists only."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
