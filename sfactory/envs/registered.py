"""An environment id that is registered with gymnasium in one process, in a form that other processes can use."""

from __future__ import annotations

from typing import Any


class RegisteredEnv:
    """Builds an environment from its gymnasium.envs.registration.EnvSpec, which holds the class or names it.

    It is pickled with what is defined in a notebook or in the main script (`sfactory.pickled`).
    """

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.__qualname__ = str(spec.id)  # the name of the pickle

    def __call__(self, **settings: Any) -> Any:
        import gymnasium

        return gymnasium.make(self.spec, **{"disable_env_checker": True, **settings})
