"""Any environment registered with gymnasium: `gymnasium/CartPole-v1`, `gymnasium/Ant-v5`.

Settings are passed to `gymnasium.make` as they are, so `max_episode_steps` and an environment's own arguments work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled, NameNotFound, NamespaceNotFound, VersionNotFound

from sfactory.env_group import EnvGroup
from sfactory.envs import EnvError, missing_package, suggest


def ids() -> list[str]:
    """What is registered; some need packages of their own."""
    return list(gymnasium.registry)


def make(env_id: str, *, num_envs: int, seeds: Sequence[int], **settings: Any) -> EnvGroup:
    """A group of `gymnasium.make(env_id, **settings)`."""
    name = f"gymnasium/{env_id}"

    def factory() -> gymnasium.Env:
        try:
            # The group itself checks what comes back, every step; the checker would only look at the first.
            return gymnasium.make(env_id, disable_env_checker=True, **settings)
        except (NameNotFound, NamespaceNotFound, VersionNotFound) as error:
            known = suggest(env_id, gymnasium.registry)
            raise EnvError(f"gymnasium knows no environment {env_id!r}{known}") from error
        except DependencyNotInstalled as error:
            if "mujoco" in str(error).lower():
                raise missing_package(name, "mujoco", "mujoco") from error
            raise

    protocol = ", ".join([env_id, *(f"{setting}={settings[setting]}" for setting in sorted(settings))])
    return EnvGroup(factory, num_envs, seeds, name=name, protocol=protocol)
