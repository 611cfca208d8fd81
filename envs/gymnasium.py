"""Any environment registered with gymnasium: `gymnasium/CartPole-v1`, `gymnasium/Ant-v5`.

Settings are passed to `gymnasium.make` as they are, so `max_episode_steps` and an environment's own arguments work.
Where an id comes with a vector environment of its own (CartPole does), groups of eight and more use it: one call steps
all of them. Exact resume needs single environments, so lockstep steps those.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled, NameNotFound, NamespaceNotFound, VersionNotFound
from gymnasium.vector import AutoresetMode

from sfactory.env_group import EnvGroup
from sfactory.envs import EnvError, Group, missing_package, suggest
from sfactory.vector_group import Native, VectorGroup

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


def ids() -> list[str]:
    """What is registered; some need packages of their own."""
    return list(gymnasium.registry)


@contextmanager
def told(env_id: str) -> Iterator[None]:
    """gymnasium's errors as one line that says what to do."""
    try:
        yield
    except (NameNotFound, NamespaceNotFound, VersionNotFound) as error:
        raise EnvError(f"gymnasium knows no environment {env_id!r}{suggest(env_id, gymnasium.registry)}") from error
    except DependencyNotInstalled as error:
        if "mujoco" in str(error).lower():
            raise missing_package(f"gymnasium/{env_id}", "mujoco", "mujoco") from error
        raise


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


def make(env_id: str, *, num_envs: int, seeds: Sequence[int], exact: bool = False, **settings: Any) -> Group:
    """A group of `gymnasium.make(env_id, **settings)`, or of `gymnasium.make_vec` where the id has its own."""
    protocol = ", ".join([env_id, *(f"{setting}={settings[setting]}" for setting in sorted(settings))])
    registered = gymnasium.registry.get(env_id)  # None for package:id too, which make imports
    if registered is not None and registered.vector_entry_point and num_envs >= FEW and not exact:
        # Single environments do whatever its vector environment cannot: other autoresets, wrappers, settings.
        with contextlib.suppress(Exception):
            return GymnasiumVectorGroup(env_id, num_envs, seeds, protocol, settings)

    def factory() -> gymnasium.Env:
        with told(env_id):
            # The group itself checks what comes back, every step; the checker would only look at the first.
            return gymnasium.make(env_id, disable_env_checker=True, **settings)

    return EnvGroup(factory, num_envs, seeds, name=f"gymnasium/{env_id}", protocol=protocol)
