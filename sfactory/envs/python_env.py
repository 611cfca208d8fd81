"""Environments of the user's own, named by a class or function: `my_file:MyEnv`, `sub/my_file.py:MyEnv`.

The class or function is called for every copy with the settings as keyword arguments and returns a gymnasium.Env, or a
ParallelEnv or AECEnv of PettingZoo with several agents. `render_mode` is passed only for a video, and only if it is a
parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sfactory.envs.agent_group import AgentGroup, as_parallel, has_agents, limit_of, unchecked
from sfactory.envs.gymnasium_adapter import EnvGroup
from sfactory.envs.python_target import accepts, check_arguments, load_target, settings_of_copy
from sfactory.envs.rendering import RenderedGroup, render_without_display
from sfactory.envs.spec import NO_SETTINGS, Group, Settings
from sfactory.envs.wrappers import Wrappers
from sfactory.errors import EnvError

if TYPE_CHECKING:
    import gymnasium


class SeveralAgents(EnvError):
    """The first copy of an environment turned out to have several agents."""

    def __init__(self, env: Any) -> None:
        super().__init__("an environment with several agents")
        self.env = env


def make(
    target: str, *, num_envs: int, seeds: Sequence[int], settings: Settings = NO_SETTINGS,
    render_mode: str | None = None, env_index: int = 0, wrap: Wrappers | None = None, drop: Sequence[str] = (),
    agent_id: bool = False, pad_spaces: bool = False,
) -> Group:  # fmt: skip
    """Build a group of environments that `target`, a class or function, returns; one call for each copy."""
    create = load_target(target)
    if render_mode or settings.get("render_mode"):
        render_without_display()

    def build(index: int) -> Any:
        arguments = settings_of_copy(create, settings, index)
        if render_mode and accepts(create, "render_mode"):
            arguments["render_mode"] = render_mode
        check_arguments(create, arguments, target, "--env.settings")
        try:
            env = create(**arguments)
        except ModuleNotFoundError as error:
            raise EnvError(f"{target} needs {error.name}, which is not installed") from error
        check_env_type(env, target)
        env = unchecked(as_parallel(env)) if has_agents(env) else env
        return wrap(env, index) if wrap else env

    def single(index: int) -> gymnasium.Env:
        env = build(index)
        if has_agents(env):
            raise SeveralAgents(env)
        return env

    common: dict[str, Any] = {
        "name": target, "protocol": protocol_of(target, settings, wrap), "env_index": env_index, "drop": drop,
    }  # fmt: skip
    try:  # only the environment itself says how many agents it has
        group = (RenderedGroup if render_mode else EnvGroup)(single, num_envs, seeds, **common)
    except SeveralAgents as found:
        built = [found.env]
    else:
        for flag, given in (("env.agent-id", agent_id), ("env.pad-spaces", pad_spaces)):
            if given:
                group.close()
                raise EnvError(f"{target}: {flag} is for environments with several agents; this one has one")
        return group

    def parallel(index: int) -> Any:
        env = built.pop() if built else build(index)
        if not has_agents(env):
            raise EnvError(f"{target} returned environments with one agent and with several", fault=True)
        return env

    return AgentGroup(
        parallel, num_envs, seeds, max_episode_steps=limit_of(settings), agent_id=agent_id, pad_spaces=pad_spaces,
        **common,
    )  # fmt: skip


def check_env_type(env: Any, target: str) -> None:
    """Raise EnvError if a class or function of the user's own returned no environment of gymnasium or PettingZoo."""
    import gymnasium

    if isinstance(env, gymnasium.Env) or has_agents(env):
        return
    kind = type(env)
    if isinstance(env, gymnasium.vector.VectorEnv):
        hint = "a vector environment; return a single one, the copies are made by sfactory"
    elif any(base.__module__.partition(".")[0] == "gym" for base in kind.__mro__):
        hint = "an environment of the old package gym; inherit from gymnasium.Env instead"
    elif env is None:
        hint = "nothing; does the function end with `return env`?"
    else:
        hint = f"an object of type {kind.__name__}; a class must inherit from gymnasium.Env"
        hint += ", with several agents from pettingzoo.ParallelEnv or AECEnv"
    raise EnvError(f"{target}: expected a gymnasium environment (gymnasium.Env), got {hint}")


def protocol_of(name: str, settings: Settings, wrap: Wrappers | None) -> str:
    """The evaluation protocol of an environment without protocols of its own: its settings and wrappers."""
    parts = [name, *(f"{setting}={settings[setting]}" for setting in sorted(settings))]
    return ", ".join([*parts, wrap.protocol] if wrap else parts)
