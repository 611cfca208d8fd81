"""Any environment registered with gymnasium: `gymnasium/CartPole-v1`, `gymnasium/Ant-v5`.

Settings are passed to `gymnasium.make` as they are, so `max_episode_steps` and an environment's own arguments work.
Where an id comes with a vector environment of its own (CartPole does), groups of eight and more use it: one call steps
all of them. Exact resume needs single environments, so lockstep steps those; so does a film. MuJoCo's planar tasks have
a group of ours (`mujoco_group.py`), which can be saved.
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
    "MuJoCo draws with OpenGL; without a screen: apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 with "
    "MUJOCO_GL=osmesa"
)
FEW = 8  # below, a loop over single environments is as fast


class GymnasiumVectorGroup(VectorGroup):
    """E environments of an id with a `vector_entry_point`."""

    def __init__(
        self, env_id: str, num_envs: int, seeds: Sequence[int], protocol: str, settings: dict[str, Any]
    ) -> None:
        mode = "vector_entry_point"
        self.env: Any = gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode=mode, **settings)
        if self.env.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            self.env.close()
            raise EnvError(f"gymnasium/{env_id}: its vector environment does not reset at the next step")
        registered = gymnasium.spec(env_id)
        super().__init__(
            f"gymnasium/{env_id}", self.env.single_observation_space, self.env.single_action_space, num_envs, seeds,
            protocol=protocol, max_episode_steps=settings.get("max_episode_steps", registered.max_episode_steps),
            reward_threshold=registered.reward_threshold,
        )  # fmt: skip
        self._seed: int | None = self.seeds[0]  # one stream for all of them: the seed that repeats any of them
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


class FilmedGroup(EnvGroup):
    """Single environments that can be drawn, on a machine without a screen too."""

    def render(self, env: int) -> np.ndarray:
        try:
            return super().render(env)
        except EnvError as error:
            if "mujoco" not in type(self.envs[env].unwrapped).__module__:
                raise
            raise EnvError(f"{error}; {NO_OPENGL}") from error


def draw_without_screen() -> None:
    """Where there is no screen, tell MuJoCo and pygame so, unless somebody has told them something else."""
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def ids() -> list[str]:
    """What is registered; some need packages of their own."""
    return list(gymnasium.registry)


def heed(message: str) -> None:
    """MuJoCo's warnings, but for one about gymnasium's own models that comes once per environment."""
    if "settotalmass" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)


def listen_to_mujoco(env_id: str) -> None:
    """Its own handler prints, and leaves a file MUJOCO_LOG.TXT wherever one stands."""
    registered = gymnasium.registry.get(env_id)
    if registered is not None and "mujoco" in str(registered.entry_point):
        with contextlib.suppress(ImportError, AttributeError):
            import mujoco

            mujoco.set_mju_user_warning(heed)


@contextmanager
def told(env_id: str) -> Iterator[None]:
    """gymnasium's errors as one line that says what to do."""
    listen_to_mujoco(env_id)
    try:
        yield
    except (NameNotFound, NamespaceNotFound, VersionNotFound) as error:
        raise EnvError(f"gymnasium knows no environment {env_id!r}{suggest(env_id, gymnasium.registry)}") from error
    except DependencyNotInstalled as error:
        if "mujoco" in str(error).lower():
            raise missing_package(f"gymnasium/{env_id}", "mujoco", "mujoco") from error
        raise
    except (AttributeError, ImportError) as error:  # what mujoco answers on import where the library is not there
        backend = os.environ.get("MUJOCO_GL", "")
        if not backend or "gl" not in str(error).lower():
            raise
        raise EnvError(f"gymnasium/{env_id}: MUJOCO_GL={backend} does not work here ({error}); {NO_OPENGL}") from error


def raw_loop(env_id: str, num_envs: int, seed: int, **settings: Any) -> Callable[[], int]:
    """`gymnasium.make`, step and reset."""
    with told(env_id):
        envs = [gymnasium.make(env_id, disable_env_checker=True, **settings) for _ in range(num_envs)]
    for number, env in enumerate(envs):
        env.reset(seed=seed + number)
    envs[0].action_space.seed(seed)
    actions = [envs[0].action_space.sample() for _ in range(1024)]  # drawing costs as much as CartPole
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
    """A group of `gymnasium.make(env_id, **settings)`, or of `gymnasium.make_vec` where the id has its own."""
    protocol = ", ".join([env_id, *(f"{setting}={settings[setting]}" for setting in sorted(settings))])
    registered = gymnasium.registry.get(env_id)  # None for package:id too, which make imports
    limited = settings.get("max_episode_steps", 1) > 0  # -1, no limit, is for single environments
    vector = registered is not None and registered.vector_entry_point and limited
    if vector and num_envs >= FEW and not exact and not render_mode:
        # Single environments do whatever its vector environment cannot: other autoresets, wrappers, settings.
        with contextlib.suppress(Exception):
            return GymnasiumVectorGroup(env_id, num_envs, seeds, protocol, settings)

    if render_mode:  # not passed on otherwise: environments of one's own may not know the word
        draw_without_screen()
        settings = {**settings, "render_mode": render_mode}

    def factory() -> gymnasium.Env:
        with told(env_id):
            # The group itself checks what comes back, every step; the checker would only look at the first.
            return gymnasium.make(env_id, disable_env_checker=True, **settings)

    if registered is not None and str(registered.entry_point).startswith("gymnasium.envs.mujoco.") and not render_mode:
        one = factory()
        from sfactory_envs.mujoco_group import MujocoGroup, task_of  # brings mujoco, which is there by now

        if (task := task_of(one)) is not None:
            return MujocoGroup(one, task, num_envs, seeds, protocol)
        one.close()
    group = FilmedGroup if render_mode else EnvGroup
    return group(factory, num_envs, seeds, name=f"gymnasium/{env_id}", protocol=protocol)
