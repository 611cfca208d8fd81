"""Environments registered with gymnasium, for example `gymnasium/CartPole-v1` and `gymnasium/Ant-v5`.

`gymnasium/my_file:Mine-v0` imports a module that registers the id, also one of the current folder. Settings are the
arguments of the environment's constructor, whatever their names, except `max_episode_steps` and `disable_env_checker`,
which are those of `gymnasium.make`.

Which environments are stepped is decided by the id and the settings, never by the number of copies, so that the spec,
the samplers and an evaluation see the same one:

    vector environment   ids of gymnasium itself that have one (CartPole), if its spaces are those of the single one,
                         and ids that have nothing else
    MuJoCo group         HalfCheetah, Hopper, Walker2d, Swimmer, Ant, Humanoid, v5 (`mujoco_group.py`)
    single environments  everything else, and whatever has wrappers, `env.drop`, `env.info_keys`, or arguments that
                         differ by copy

Exact resume and videos step CartPole as single environments. An id of another package with a vector environment of its
own (ALE/Pong-v5) is stepped as single ones, because nothing says that rewards and resets of the two are the same.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, _find_spec, load_env_creator
from gymnasium.error import DependencyNotInstalled, Error, NameNotFound, NamespaceNotFound, VersionNotFound
from gymnasium.vector import AutoresetMode

from sfactory.envs import NO_SETTINGS, EnvError, Group, Settings, missing_package, one_line, suggest
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.envs.python_env import protocol_of
from sfactory.envs.python_target import accepts, differs_by_copy, import_module, settings_of_copy
from sfactory.envs.rendering import NO_OPENGL, RenderedGroup, render_without_display
from sfactory.envs.step_values import as_flags
from sfactory.envs.vector_adapter import Native, VectorGroup
from sfactory.envs.wrappers import Wrappers
from sfactory.errors import UnknownEnvError

OF_MAKE = ("max_episode_steps", "disable_env_checker")
"""Arguments of `gymnasium.make`; all other settings are arguments of the environment."""
OF_MAKE_VEC = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")
"""Names that `gymnasium.make_vec` takes away from the arguments of a vector environment."""


@dataclass(frozen=True)
class Registered:
    """An id of gymnasium's registry with the settings of the user."""

    env_id: str
    spec: EnvSpec
    settings: Settings

    @property
    def name(self) -> str:
        return f"gymnasium/{self.env_id}"

    @property
    def of_make(self) -> dict[str, Any]:
        """Settings for `gymnasium.make`."""
        return {name: value for name, value in self.settings.items() if name in OF_MAKE}

    @property
    def of_env(self) -> dict[str, Any]:
        """Settings for the environment."""
        return {name: value for name, value in self.settings.items() if name not in OF_MAKE}

    @property
    def max_episode_steps(self) -> int | None:
        limit = self.settings.get("max_episode_steps", self.spec.max_episode_steps)
        return limit if limit is not None and limit > 0 else None

    @cached_property
    def creator(self) -> Callable[..., Any]:
        """The class or function that builds a single environment, or else a vector environment."""
        entry_point = self.spec.entry_point or self.spec.vector_entry_point
        with readable_errors(self.env_id, self.spec):
            return entry_point if callable(entry_point) else load_env_creator(str(entry_point))

    @property
    def only_vector(self) -> bool:
        """Whether there is no single environment."""
        return self.spec.entry_point is None

    @property
    def has_twin(self) -> bool:
        """Whether there is a vector environment beside the single one, both of gymnasium itself.

        Settings that a vector environment does not take as the single one does speak against it.
        """
        points = (self.spec.entry_point, self.spec.vector_entry_point)
        places = [point if isinstance(point, str) else getattr(point, "__module__", "") for point in points]
        limit = self.settings.get("max_episode_steps", 1)  # -1 (no limit) works for single environments only
        return (
            all(str(place).startswith("gymnasium.envs.") for place in places)
            and isinstance(limit, int)
            and limit > 0
            and not {"disable_env_checker", "render_mode", *OF_MAKE_VEC} & self.settings.keys()
        )

    def with_arguments(self, index: int, **arguments: Any) -> EnvSpec:
        """The registered spec with the settings of one copy: `gymnasium.make` would use some names itself."""
        own = {**self.spec.kwargs, **settings_of_copy(self.creator, self.of_env, index), **arguments}
        return replace(self.spec, kwargs=own)

    def build(self, index: int, **arguments: Any) -> gymnasium.Env:
        """Build a single environment. arguments: replace settings of the same name."""
        with readable_errors(self.env_id, self.spec):
            # The group checks the results of every step; gymnasium's checker only checks the first.
            of_make = {"disable_env_checker": True, **self.of_make}
            return gymnasium.make(self.with_arguments(index, **arguments), **of_make)


def find(env_id: str, settings: Settings) -> Registered:
    """Look an id up in the registry, after an import of the module that it may name."""
    module, _, name = env_id.rpartition(":")
    if module:
        import_module(module, f"gymnasium/{env_id}")
    with readable_errors(env_id):
        try:
            return Registered(env_id, _find_spec(name), settings)
        except (NameNotFound, NamespaceNotFound, VersionNotFound):
            raise
        except Error as error:
            raise EnvError(f"gymnasium/{env_id}: {one_line(error)}") from error


class GymnasiumVectorGroup(VectorGroup):
    """Group of E environments of an id that has a `vector_entry_point`."""

    at_once = False  # it may step its environments one after the other

    def __init__(
        self, registered: Registered, num_envs: int, seeds: Sequence[int], protocol: str, env_index: int,
        drop: Sequence[str],
    ) -> None:  # fmt: skip
        spec, of_make = registered.with_arguments(env_index), registered.of_make
        of_make.pop("disable_env_checker", None)  # there is no checker of vector environments
        mode = "vector_entry_point"
        with readable_errors(registered.env_id, registered.spec):
            self.env: Any = gymnasium.make_vec(spec, num_envs=num_envs, vectorization_mode=mode, **of_make)
        found = self.env.metadata.get("autoreset_mode")
        if found != AutoresetMode.NEXT_STEP:
            self.env.close()
            raise EnvError(
                f"{registered.name}: its vector environment resets by another rule (metadata['autoreset_mode'] is "
                f"{found}); it must reset an environment in the step after its last one, ignore the action of that "
                "step, and say so: gymnasium.vector.AutoresetMode.NEXT_STEP"
            )
        super().__init__(
            registered.name, self.env.single_observation_space, self.env.single_action_space, num_envs, seeds,
            protocol=protocol, max_episode_steps=registered.max_episode_steps,
            reward_threshold=spec.reward_threshold, drop=drop,
        )  # fmt: skip
        self._seed: int | None = self.seeds[0]  # one random stream for all environments
        self.seeds = [self.seeds[0]] * num_envs
        self._ended = self._never

    def begin(self) -> Any:
        self._ended = self._never
        obs, _ = self.env.reset(seed=self._seed)
        self._seed = None
        return obs

    def advance(self, action: Any) -> Native:
        if isinstance(action, dict):
            action = self._actions.nest(list(action.values()))
        obs, reward, ended, cut, _ = self.env.step(action)
        terminated = as_flags(ended, "terminated", self.num_envs)
        truncated = as_flags(cut, "truncated", self.num_envs)
        reset, self._ended = self._ended, terminated | truncated
        return Native(
            obs, np.where(reset, 0, self._rewards(reward)), terminated, truncated, reset, self._ended, self._never
        )

    def close(self) -> None:
        self.env.close()


def ids() -> list[str]:
    """List the registered ids; some need more packages."""
    return list(gymnasium.registry)


def warn_of_mujoco(message: str) -> None:
    """Show a MuJoCo warning, except the one that gymnasium's own models cause in every environment."""
    if "settotalmass" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def redirect_mujoco_warnings(spec: EnvSpec | None) -> None:
    """Turn MuJoCo's warnings into Python warnings; its own handler prints and writes MUJOCO_LOG.TXT."""
    if spec is not None and "mujoco" in str(spec.entry_point):
        with contextlib.suppress(ImportError, AttributeError):
            import mujoco

            mujoco.set_mju_user_warning(warn_of_mujoco)


def atari_hint(env_id: str) -> str:
    """The end of an error message for an id of ale-py, which nothing has imported; empty for other ids."""
    if not re.match(r"ALE/|\w+(NoFrameskip|Deterministic)-v\d", env_id):
        return ""
    return f"; Atari games are atari/ID, see `sfactory envs atari`, or gymnasium/ale_py:{env_id}"


@contextmanager
def readable_errors(env_id: str, spec: EnvSpec | None = None) -> Iterator[None]:
    """Convert gymnasium's errors to EnvError, one line with the remedy."""
    redirect_mujoco_warnings(spec)
    try:
        yield
    except (NameNotFound, NamespaceNotFound, VersionNotFound) as error:
        hint = atari_hint(env_id) or suggest(env_id.rpartition(":")[2], gymnasium.registry)
        raise UnknownEnvError(f"gymnasium knows no environment {env_id!r}{hint}") from error
    except DependencyNotInstalled as error:
        if "mujoco" in str(error).lower():
            raise missing_package(f"gymnasium/{env_id}", "mujoco", "mujoco") from error
        raise EnvError(f"gymnasium/{env_id} needs a package: {error}") from error
    except (AttributeError, ImportError) as error:  # raised by `import mujoco` if the OpenGL library is missing
        backend = os.environ.get("MUJOCO_GL", "")
        if backend and "gl" in str(error).lower():
            text = f"MUJOCO_GL={backend} does not work here ({error}); {NO_OPENGL}"
            raise EnvError(f"gymnasium/{env_id}: {text}") from error
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise EnvError(f"gymnasium/{env_id} needs {error.name}, which is not installed") from error
        raise


def raw_loop(env_id: str, num_envs: int, seed: int, *, settings: Settings = NO_SETTINGS) -> Callable[[], int] | None:
    """Return a plain loop over `gymnasium.make` environments; None for an id that has a vector environment only."""
    registered = find(env_id, settings)
    if registered.only_vector:
        return None
    envs = [registered.build(number) for number in range(num_envs)]
    for number, env in enumerate(envs):
        env.reset(seed=seed + number)
    envs[0].action_space.seed(seed)
    actions = [envs[0].action_space.sample() for _ in range(1024)]  # sampling costs as much as CartPole
    turn = itertools.count()

    def step() -> int:
        for env in envs:
            _, _, terminated, truncated, _ = env.step(actions[next(turn) % len(actions)])
            if terminated or truncated:
                env.reset()
        return num_envs

    return step


def make(
    env_id: str, *, num_envs: int, seeds: Sequence[int], settings: Settings = NO_SETTINGS, exact: bool = False,
    render_mode: str | None = None, env_index: int = 0, wrap: Wrappers | None = None, drop: Sequence[str] = (),
    info_keys: Sequence[str] = (),
) -> Group:  # fmt: skip
    """Build a group of `gymnasium.make(env_id, **settings)`; the top of this file says of which kind."""
    registered = find(env_id, settings)
    protocol = protocol_of(env_id, settings, wrap)
    if registered.only_vector:
        return _only_vector(registered, num_envs, seeds, protocol, env_index, wrap, drop)
    plain = not (render_mode or wrap or drop or info_keys or differs_by_copy(registered.creator, registered.of_env))
    if plain and not exact and registered.has_twin:
        group = _vector_twin(registered, num_envs, seeds, protocol)
        if group is not None:
            return group
    if plain and str(registered.spec.entry_point).startswith("gymnasium.envs.mujoco."):
        env = registered.build(env_index)
        from sfactory_envs.mujoco_group import task_of  # imports mujoco, which build() has found

        if (task := task_of(env)) is not None:
            return task.group(env, task, num_envs, seeds, protocol)
        env.close()
    if render_mode or settings.get("render_mode"):
        render_without_display()
    # Some environments have no such parameter.
    for_video = {"render_mode": render_mode} if render_mode and accepts(registered.creator, "render_mode") else {}

    def factory(index: int) -> gymnasium.Env:
        env = registered.build(index, **for_video)
        return wrap(env, index) if wrap else env

    kind = RenderedGroup if render_mode else EnvGroup
    return kind(factory, num_envs, seeds, name=registered.name, protocol=protocol, env_index=env_index, drop=drop)


def _vector_twin(
    registered: Registered, num_envs: int, seeds: Sequence[int], protocol: str
) -> GymnasiumVectorGroup | None:
    """A group of the vector environment of an id, if that has the spaces of the single environment; else None."""
    try:
        group = GymnasiumVectorGroup(registered, num_envs, seeds, protocol, 0, ())
    except Exception:  # additional wrappers, another autoreset, settings: single environments take or report them
        return None
    single = registered.build(0)
    same = (single.observation_space, single.action_space) == (group.observation_space, group.action_space)
    single.close()
    if not same:
        group.close()
    return group if same else None


def _only_vector(
    registered: Registered, num_envs: int, seeds: Sequence[int], protocol: str, env_index: int,
    wrap: Wrappers | None, drop: Sequence[str],
) -> GymnasiumVectorGroup:  # fmt: skip
    """A group of an id that has a vector environment and no single one. Its copies share all arguments."""
    if wrap:
        raise EnvError(f"{registered.name}: env.wrappers needs single environments, and this id has a vector one only")
    for name in OF_MAKE_VEC:
        if name in registered.settings:
            raise EnvError(
                f"{registered.name}: the setting {name!r} cannot reach the environment, because gymnasium.make_vec has "
                "an argument of this name"
            )
    return GymnasiumVectorGroup(registered, num_envs, seeds, protocol, env_index, drop)
