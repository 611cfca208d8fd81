"""Environments with several agents: `pettingzoo/mpe/simple_spread`, `pettingzoo/butterfly/pistonball`.

One policy acts for all agents. Names are those of PettingZoo's registry, of the package mpe2 (`mpe/...`), or
`my_file:function` for an environment of your own; a name without a version is the newest one. Games in which agents
take turns are stepped through PettingZoo's own conversion. Settings are the arguments of the environment.

    --env.agent-id true     append the number of the agent to its observation
    --env.pad-spaces true   agents may have spaces of different sizes
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sfactory.envs import NO_SETTINGS, EnvError, Settings, missing_package, suggest
from sfactory.envs.agent_group import AgentGroup, as_parallel, has_agents, limit_of, turn_of, unchecked
from sfactory.envs.python_env import protocol_of
from sfactory.envs.python_target import accepts, check_arguments, load_target, settings_of_copy
from sfactory.envs.rendering import render_without_display
from sfactory.envs.wrappers import Wrappers

MPE = "mpe/"
BUTTERFLY = "butterfly/"
VERSION = re.compile(r"[-_]v(\d+)$")


def ids() -> list[str]:
    """List the ids of PettingZoo's registry and of mpe2. Some need more packages, Atari also its ROMs."""
    return sorted(_registered() | {MPE + name for name in _mpe_names()})


def make(
    env_id: str, *, num_envs: int, seeds: Sequence[int], settings: Settings = NO_SETTINGS, env_index: int = 0,
    render_mode: str | None = None, wrap: Wrappers | None = None, drop: Sequence[str] = (), agent_id: bool = False,
    pad_spaces: bool = False,
) -> AgentGroup:  # fmt: skip
    """Build a group of one environment with all its agents."""
    name = f"pettingzoo/{env_id}"
    create = _creator(env_id)
    render_without_display()  # the observations of some are pictures
    drawn = {} if render_mode else _drawn(env_id, create, settings)

    def factory(index: int) -> Any:
        arguments = settings_of_copy(create, settings, index)
        if render_mode and accepts(create, "render_mode"):
            arguments["render_mode"] = render_mode
        if ":" in env_id:
            check_arguments(create, arguments, name, "--env.settings")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated names inside PettingZoo
            env = unchecked(_parallel(create(**drawn, **arguments), name))
        return wrap(env, index) if wrap else env

    return AgentGroup(
        factory, num_envs, seeds, name=name, protocol=protocol_of(name, settings, wrap),
        max_episode_steps=limit_of(settings), env_index=env_index, drop=drop, agent_id=agent_id, pad_spaces=pad_spaces,
    )  # fmt: skip


def raw_loop(env_id: str, num_envs: int, seed: int, *, settings: Settings = NO_SETTINGS) -> Callable[[], int]:
    """Return a plain loop over the library with random actions; each call steps every environment once.

    It returns the number of agents that acted. An environment that ends is reset in the same call.
    """
    create = _creator(env_id)
    drawn = _drawn(env_id, create, settings)
    envs = [_parallel(create(**drawn, **settings), env_id) for _ in range(num_envs)]
    spaces = {agent: envs[0].action_space(agent) for agent in envs[0].possible_agents}
    for number, space in enumerate(spaces.values()):
        space.seed(seed + number)
    actions = {agent: [space.sample() for _ in range(64)] for agent, space in spaces.items()}
    last = [env.reset(seed=seed + number)[0] for number, env in enumerate(envs)]
    turn = itertools.count()

    def step() -> int:
        now, acted = next(turn) % 64, 0
        for number, env in enumerate(envs):
            active, obs = turn_of(env), last[number]
            agents = env.agents if active is None else [active]
            acted += len(agents)
            last[number] = env.step({agent: _legal(actions[agent][now], obs.get(agent)) for agent in agents})[0]
            if not env.agents:
                last[number] = env.reset()[0]
        return acted

    return step


def _legal(action: Any, obs: Any) -> Any:
    """The action, or the first one that the mask of an observation allows."""
    mask = obs.get("action_mask") if isinstance(obs, dict) else None
    return action if mask is None or mask[action] else mask.argmax()


def _parallel(env: Any, name: str) -> Any:
    """Return an environment with the parallel API; turn-based games are converted."""
    if not has_agents(env):
        kind = type(env).__name__
        raise EnvError(f"{name}: expected a pettingzoo.ParallelEnv or AECEnv, got an object of type {kind}")
    return as_parallel(env)


def _drawn(env_id: str, create: Callable[..., Any], settings: Settings) -> dict[str, str]:
    """The render mode without which the pictures that agents see would never change, in games of butterfly."""
    if not env_id.startswith(BUTTERFLY) or "render_mode" in settings:
        return {}
    env = create(**settings)
    space = env.observation_space(env.possible_agents[0])
    return {"render_mode": "rgb_array"} if space.dtype == np.uint8 and len(space.shape) > 1 else {}


def _creator(env_id: str) -> Callable[..., Any]:
    """The function that builds an environment."""
    if ":" in env_id:
        return load_target(env_id)
    if env_id.startswith(MPE):
        names = _mpe_names()
        name = _newest(env_id.removeprefix(MPE), names)
        if name is None:
            raise EnvError(f"mpe2 has no environment {env_id}{suggest(env_id, [MPE + known for known in names])}")
        create: Callable[..., Any] = importlib.import_module(f"mpe2.{name}").parallel_env
        return create
    return _from_registry(env_id)


def _from_registry(env_id: str) -> Callable[..., Any]:
    import pettingzoo

    name = _newest(env_id, _registered())
    if name is None:
        raise EnvError(f"PettingZoo has no environment {env_id}{suggest(env_id, ids())}")
    kind = "parallel" if name in pettingzoo.parallel_registry else "aec"

    def create(**arguments: Any) -> Any:
        try:
            return pettingzoo.make(kind, name, **arguments)
        except ModuleNotFoundError as error:
            namespace = name.partition("/")[0]
            raise EnvError(
                f"pettingzoo/{env_id} needs {error.name}, which is not installed: pip install 'pettingzoo[{namespace}]'"
            ) from error

    return create


def _registered() -> set[str]:
    try:
        import pettingzoo
    except ModuleNotFoundError as error:
        raise missing_package("pettingzoo", "pettingzoo", "pettingzoo") from error
    return {*pettingzoo.parallel_registry, *pettingzoo.aec_registry}


def _mpe_names() -> list[str]:
    """Modules of mpe2 with an environment, as simple_spread_v3; empty if it is not installed."""
    try:
        import mpe2
    except ModuleNotFoundError:
        return []
    return [module.name for module in pkgutil.iter_modules(mpe2.__path__) if VERSION.search(module.name)]


def _newest(wanted: str, known: Iterable[str]) -> str | None:
    """The known name with the highest version, or with the version that is wanted."""
    found = [name for name in known if wanted in (name, VERSION.sub("", name))]
    return max(found, key=lambda name: int(VERSION.search(name)[1]), default=None)  # type: ignore[index]
