"""Environments registered with gymnasium, for example `gymnasium/CartPole-v1` and `gymnasium/Ant-v5`.

Settings are passed to `gymnasium.make`, so `max_episode_steps` and the environment's own arguments work. If an id has
its own vector environment (CartPole), groups of eight or more use it. Exact resume and videos need single
environments. MuJoCo's planar tasks have a group of their own (`mujoco_group.py`), which supports exact resume.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled, NameNotFound, NamespaceNotFound, VersionNotFound
from gymnasium.vector import AutoresetMode

from sfactory.envs import EnvError, Group, missing_package, suggest
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.envs.vector_adapter import Native, VectorGroup

NO_OPENGL = (
    "MuJoCo needs OpenGL to render; without a display: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 with "
    "MUJOCO_GL=osmesa"
)
MIN_VECTOR = 8  # with fewer environments, a loop over single ones is as fast


class GymnasiumVectorGroup(VectorGroup):
    """Group of E environments of an id that has a `vector_entry_point`."""

    at_once = False  # it may step its environments one after the other

    def __init__(
        self, env_id: str, num_envs: int, seeds: Sequence[int], protocol: str, settings: dict[str, Any]
    ) -> None:
        mode = "vector_entry_point"
        self.env: Any = gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode=mode, **settings)
        if self.env.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            self.env.close()
            raise EnvError(f"gymnasium/{env_id}: its vector environment does not use next-step autoreset")
        registered = gymnasium.spec(env_id)
        super().__init__(
            f"gymnasium/{env_id}", self.env.single_observation_space, self.env.single_action_space, num_envs, seeds,
            protocol=protocol, max_episode_steps=settings.get("max_episode_steps", registered.max_episode_steps),
            reward_threshold=registered.reward_threshold,
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
        obs, reward, terminated, truncated, _ = self.env.step(action)
        reset, self._ended = self._ended, terminated | truncated
        return Native(obs, np.where(reset, 0, reward), terminated, truncated, reset, self._ended, self._never)

    def close(self) -> None:
        self.env.close()


class RenderedGroup(EnvGroup):
    """Group of single environments with images, also on a machine without a display."""

    def render(self, env: int) -> np.ndarray:
        try:
            return super().render(env)
        except EnvError as error:
            if "mujoco" not in type(self.envs[env].unwrapped).__module__:
                raise
            raise EnvError(f"{error}; {NO_OPENGL}") from error


def render_without_display() -> None:
    """Configure MuJoCo and pygame for a machine without a display, unless the variables are already set."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def ids() -> list[str]:
    """List the registered ids; some need more packages."""
    return list(gymnasium.registry)


def warn_of_mujoco(message: str) -> None:
    """Show a MuJoCo warning, except the one that gymnasium's own models cause in every environment."""
    if "settotalmass" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def redirect_mujoco_warnings(env_id: str) -> None:
    """Turn MuJoCo's warnings into Python warnings; its own handler prints and writes MUJOCO_LOG.TXT."""
    registered = gymnasium.registry.get(env_id)
    if registered is not None and "mujoco" in str(registered.entry_point):
        with contextlib.suppress(ImportError, AttributeError):
            import mujoco

            mujoco.set_mju_user_warning(warn_of_mujoco)


@contextmanager
def readable_errors(env_id: str) -> Iterator[None]:
    """Convert gymnasium's errors to EnvError, one line with the remedy."""
    redirect_mujoco_warnings(env_id)
    try:
        yield
    except (NameNotFound, NamespaceNotFound, VersionNotFound) as error:
        raise EnvError(f"gymnasium knows no environment {env_id!r}{suggest(env_id, gymnasium.registry)}") from error
    except DependencyNotInstalled as error:
        if "mujoco" in str(error).lower():
            raise missing_package(f"gymnasium/{env_id}", "mujoco", "mujoco") from error
        raise
    except (AttributeError, ImportError) as error:  # raised by `import mujoco` if the OpenGL library is missing
        backend = os.environ.get("MUJOCO_GL", "")
        if not backend or "gl" not in str(error).lower():
            raise
        raise EnvError(f"gymnasium/{env_id}: MUJOCO_GL={backend} does not work here ({error}); {NO_OPENGL}") from error


def raw_loop(env_id: str, num_envs: int, seed: int, **settings: Any) -> Callable[[], int]:
    """Return a plain loop over `gymnasium.make` environments."""
    with readable_errors(env_id):
        envs = [gymnasium.make(env_id, disable_env_checker=True, **settings) for _ in range(num_envs)]
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
    env_id: str, *, num_envs: int, seeds: Sequence[int], exact: bool = False, render_mode: str | None = None,
    **settings: Any,
) -> Group:  # fmt: skip
    """Build a group of `gymnasium.make(env_id, **settings)`, or of `gymnasium.make_vec` if the id supports it."""
    protocol = ", ".join([env_id, *(f"{setting}={settings[setting]}" for setting in sorted(settings))])
    registered = gymnasium.registry.get(env_id)  # also None for package:id, which gymnasium.make imports
    limited = settings.get("max_episode_steps", 1) > 0  # -1 (no limit) works for single environments only
    vector = registered is not None and registered.vector_entry_point and limited
    if vector and num_envs >= MIN_VECTOR and not exact and not render_mode:
        # If it fails (autoreset mode, wrappers, settings), single environments are used below.
        with contextlib.suppress(Exception):
            return GymnasiumVectorGroup(env_id, num_envs, seeds, protocol, settings)

    if render_mode:  # otherwise not passed on, because some environments have no such parameter
        render_without_display()
        settings = {**settings, "render_mode": render_mode}

    def factory() -> gymnasium.Env:
        with readable_errors(env_id):
            # The group checks the results of every step; gymnasium's checker only checks the first.
            return gymnasium.make(env_id, disable_env_checker=True, **settings)

    if registered is not None and str(registered.entry_point).startswith("gymnasium.envs.mujoco.") and not render_mode:
        env = factory()
        from sfactory_envs.mujoco_group import task_of  # imports mujoco, which factory() has found

        if (task := task_of(env)) is not None:
            return task.group(env, task, num_envs, seeds, protocol)
        env.close()
    group = RenderedGroup if render_mode else EnvGroup
    return group(factory, num_envs, seeds, name=f"gymnasium/{env_id}", protocol=protocol)
