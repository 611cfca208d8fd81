"""Everything envpool has, in C++: `envpool/Pong-v5`, `envpool/HalfCheetah-v5`, `envpool/D1Basic-v1`, 1,651 tasks.

Settings go to `envpool.make_gymnasium` as they are (`env.settings.episodic_life`: never; a life loss would reset the
whole game's score). Its `-v5` Atari tasks default to no sticky actions; rewards come raw where the task says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sfactory.envs import EnvError, missing_package, suggest
from sfactory.vector_group import Native, VectorGroup


class EnvpoolGroup(VectorGroup):
    """E environments of one task, stepped by envpool's threads."""

    def __init__(
        self, task: str, num_envs: int, seeds: Sequence[int], threads: int, settings: dict[str, Any]
    ) -> None:
        import envpool

        tasks = envpool.list_all_envs()
        if task not in tasks:
            raise EnvError(f"envpool has no task {task!r}{suggest(task, tasks)}")
        if settings.get("episodic_life"):
            raise EnvError(f"envpool/{task}: episodic_life ends the reported game at every life; use atari/ with dqn")
        # Seeds are taken here and nowhere else: its reset ignores them.
        self.env = envpool.make_gymnasium(
            task, num_envs=num_envs, seed=[seed % 2**31 for seed in seeds], num_threads=threads, **settings
        )
        said = ", ".join(["envpool", task, *(f"{name}={settings[name]}" for name in sorted(settings))])
        limits = self.env.spec.config
        super().__init__(
            f"envpool/{task}", self.env.observation_space, self.env.action_space, num_envs, seeds, protocol=said,
            frame_skip=int(getattr(limits, "frame_skip", 1)),
            max_episode_steps=int(getattr(limits, "max_episode_steps", 0)) or None,
        )  # fmt: skip
        self._ended = np.ones(num_envs, bool)

    def begin(self) -> Any:
        obs, _ = self.env.reset()
        self._ended = np.zeros(self.num_envs, bool)
        return obs

    def advance(self, action: Any) -> Native:
        obs, reward, terminated, truncated, _ = self.env.step(action)
        reset, self._ended = self._ended, terminated | truncated
        if reset.any():
            reward = np.where(reset, 0, reward)
        return Native(obs, reward, terminated, truncated, reset, self._ended, self._never)

    def close(self) -> None:
        self.env.close()


def make(env_id: str, *, num_envs: int, seeds: Sequence[int], threads: int = 1, **settings: Any) -> EnvpoolGroup:
    """A group of one task. threads: of envpool, per group. Further settings go to `envpool.make_gymnasium`."""
    try:
        return EnvpoolGroup(env_id, num_envs, seeds, threads, settings)
    except ModuleNotFoundError as error:
        raise missing_package(f"envpool/{env_id}", "envpool", "envpool") from error
