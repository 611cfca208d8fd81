"""Any registered Gymnasium environment: `gymnasium/CartPole-v1`, `gymnasium/Pendulum-v1`, `gymnasium/Acrobot-v1`.

Settings are passed to `gymnasium.make` as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from sfactory.envs import EnvError, EnvGroup, suggestion


def make(env_id: str, *, num_envs: int, seeds: Sequence[int], **settings: Any) -> EnvGroup:
    """E environments of one id. Raises EnvError if it is not registered, with the nearest one that is."""
    try:
        gym.spec(env_id)
    except gym.error.Error as error:
        raise EnvError(f"gymnasium has no environment {env_id!r}{suggestion(env_id, list(gym.registry))}") from error

    def factory() -> gym.Env[Any, Any]:
        # The checker costs a third of a CartPole step, and the group checks what matters itself.
        return gym.make(env_id, disable_env_checker=True, **settings)

    try:
        return EnvGroup(factory, num_envs, seeds, name=f"gymnasium/{env_id}")
    except gym.error.DependencyNotInstalled as error:
        raise EnvError(f"{env_id} needs a package that is not installed: {error}") from error
