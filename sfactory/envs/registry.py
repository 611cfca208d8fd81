"""Find an environment family by name and build groups and specs.

Families are entry points of the group `sfactory.envs`; docs/extending.md shows how a package adds one. A name with a
colon, as `my_file:MyEnv`, is a class or function of the user's own instead (`sfactory.envs.python_env`). This module
does not import torch, and it imports a family's package only when one of its groups is built.

A family's function `make(env_id, *, num_envs, seeds, ...)` has more keyword-only parameters for what it supports:

    exact         build a group that has `snapshot`, also if it is slower
    render_mode   "rgb_array" if the group must have `render`
    settings      the settings of the environment in one mapping, whatever their names; a setting that has a parameter
                  of its own is passed there. Without this parameter every setting is a keyword argument.

and, beside `settings`:

    env_index     the number of the first environment in this run; the following ones have the next numbers
    wrap          `sfactory.envs.wrappers.Wrappers`, to be called with every single environment and its number
    drop          leaves of the observation that are left out, for EnvGroup and VectorGroup
    agent_id      append the number of the agent to the observation, for AgentGroup
    pad_spaces    agents may have spaces of different sizes, for AgentGroup
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sfactory.envs.action_leaf import one_line_space
from sfactory.envs.options import EnvOptions
from sfactory.envs.python_target import is_python_target
from sfactory.envs.saved_spec import spaces_from_json, spaces_to_json
from sfactory.envs.spec import EnvSpec, Group, Leaf, Settings
from sfactory.envs.wrappers import Wrappers
from sfactory.errors import EnvError, NoPictures, one_line, suggest
from sfactory.families import families

OURS = frozenset({"num_envs", "seeds", "exact", "render_mode"})
"""Parameters of a family's `make` that are never settings."""
OURS_BESIDE_SETTINGS = frozenset({"settings", "env_index", "wrap", "drop", "agent_id", "pad_spaces", "info_keys"})
"""The same for a family that takes its settings as one mapping."""


def missing_package(name: str, package: str, extra: str) -> EnvError:
    """The error for a family whose package is not installed, with the command that mends it."""
    return EnvError(f"{name} needs {package}, which is not installed: pip install 'sfactory[{extra}]'")


def load_family(name: str) -> Callable[..., Group]:
    """Import one family and return its `make` function. Raises EnvError if it is not installed."""
    known = families()
    if name not in known:
        installed = ", ".join(sorted(known))
        raise EnvError(f"unknown environment family {name!r}{suggest(name, known)}; installed: {installed}")
    try:
        return known[name].load()
    except ModuleNotFoundError as error:
        raise missing_package(name, error.name or "a package", name) from error


def family_ids(name: str) -> list[str]:
    """List the ids of a family, from its function `ids()`. Raises EnvError if the family has none."""
    module = sys.modules[load_family(name).__module__]
    if not hasattr(module, "ids"):
        raise EnvError(f"the family {name} has no list of ids; use any id of its package")
    return sorted(module.ids())


def raw_loop(
    name: str, num_envs: int, seed: int, options: EnvOptions | Settings | None = None
) -> Callable[[], int] | None:
    """Return a plain loop over the library behind `FAMILY/ID`, with random actions and without sfactory's adapters.

    Each call steps `num_envs` environments once and returns the number of steps. None if the family has no `raw_loop`,
    and for environments in wrappers, which are not the library alone.
    """
    options = EnvOptions.of(options)
    if is_python_target(name) or options.wrappers:
        return None
    family, _, env_id = name.partition("/")
    module = sys.modules[load_family(family).__module__]
    if not hasattr(module, "raw_loop"):
        return None
    arguments = _arguments(name, module.raw_loop, options, positional=3)
    loop: Callable[[], int] = module.raw_loop(env_id, num_envs, seed, **arguments)
    return loop


def make_group(
    name: str,
    num_envs: int,
    seeds: Sequence[int],
    options: EnvOptions | Settings | None = None,
    exact: bool = False,
    render: bool = False,
    env_index: int = 0,
) -> Group:
    """Build a group of `FAMILY/ID` or `MODULE:NAME` environments.

    num_envs, seeds: number of environments and one seed for each.
    options: what the user said about the environment; a plain mapping is its settings.
    exact: build a group that has `snapshot`, if the family's `make` takes `exact`; it may be slower.
    render: build a group that has `render`; it may be slower.
    env_index: the number of the first environment among those that are alive in the run.
    Raises EnvError for an unknown family, id or setting, a missing package, a constructor that raises, or no `render`.
    """
    if len(seeds) != num_envs or num_envs < 1:
        raise EnvError(f"{name}: {num_envs} environments need as many seeds (got {len(seeds)})")
    options = EnvOptions.of(options)
    family, env_id, make = _family_of(name)
    arguments = _arguments(name, make, options, positional=1)
    parameters = inspect.signature(make).parameters
    if "exact" in parameters:
        arguments["exact"] = exact
    if render:
        any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if "render_mode" not in parameters and ("settings" in parameters or not any_keyword):
            raise NoPictures(f"{name}: no video, because make() of the family {family} has no parameter render_mode")
        arguments["render_mode"] = "rgb_array"
    arguments |= _beside_settings(name, family, parameters, options, env_index)
    try:
        group = make(env_id, num_envs=num_envs, seeds=list(seeds), **arguments)
    except EnvError:
        raise
    except ModuleNotFoundError as error:
        raise missing_package(name, error.name or "a package", family) from error
    except Exception as error:
        raise EnvError(f"{name} could not be built: {one_line(error)}", fault=True) from error
    if render and not hasattr(group, "render"):
        group.close()
        raise NoPictures(f"{name}: no video, because its group has no method render")
    if options.info_keys:
        if not hasattr(group, "info_keys"):
            group.close()
            raise EnvError(
                f"{name}: env.info-keys {','.join(options.info_keys)}: the family {family} steps its environments in "
                "native code, which reports no numbers of info; leave the setting out"
            )
        group.info_keys = options.info_keys
    return group


def _beside_settings(
    name: str, family: str, parameters: Container[str], options: EnvOptions, env_index: int
) -> dict[str, Any]:
    """Return the arguments OURS_BESIDE_SETTINGS, but for the settings, as far as `make` has parameters for them.

    Raises EnvError for what the user asked for and `make` cannot do.
    """
    arguments: dict[str, Any] = {}
    wrap, takes_settings = Wrappers(options), "settings" in parameters
    if takes_settings and "env_index" in parameters:
        arguments["env_index"] = env_index
    if options.info_keys and takes_settings and "info_keys" in parameters:
        arguments["info_keys"] = options.info_keys
    ours = (
        ("wrap", wrap, "env.wrappers"),
        ("drop", options.drop, "env.drop"),
        ("agent_id", options.agent_id, "env.agent-id"),
        ("pad_spaces", options.pad_spaces, "env.pad-spaces"),
    )
    for parameter, value, flag in ours:
        if value:
            if not takes_settings or parameter not in parameters:
                raise EnvError(f"{name}: {flag} {_UNSUPPORTED[parameter].format(family=family)}")
            arguments[parameter] = value
    return arguments


_UNSUPPORTED = {
    "wrap": "is for the families gymnasium and pettingzoo, and for environments of your own (my_file:MyEnv); the "
    "family {family} does not step single environments that could be wrapped",
    "drop": "is not possible here: make() of the family {family} has no parameter drop",
    "agent_id": "is for environments with several agents; those of the family {family} have one",
    "pad_spaces": "is for environments with several agents; those of the family {family} have one",
}


def _family_of(name: str) -> tuple[str, str, Callable[..., Group]]:
    """Return the family of a name, the id that its `make` takes, and `make`."""
    if is_python_target(name):
        from sfactory.envs.python_env import make

        return "python", name, make
    family, _, env_id = name.partition("/")
    if not env_id:
        raise EnvError(f"environment {name!r}: write FAMILY/ID, for example gymnasium/CartPole-v1")
    return family, env_id, load_family(family)


def _arguments(name: str, function: Callable[..., Any], options: EnvOptions, positional: int) -> dict[str, Any]:
    """Return the settings as keyword arguments of a family's function. Raises EnvError for one that it cannot take.

    positional: number of arguments that the caller passes in front of them.
    """
    parameters = list(inspect.signature(function).parameters.values())
    keywords = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    in_one_mapping = "settings" in keywords
    reserved = OURS | {p.name for p in parameters[:positional]} | (OURS_BESIDE_SETTINGS if in_one_mapping else set())
    known = keywords - reserved
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
    given = dict(options.settings)
    arguments: dict[str, Any] = {}
    if options.protocol:
        if "protocol" not in known and not (any_keyword and not in_one_mapping):
            raise EnvError(f"{name}: env.protocol {options.protocol}: it has no protocols to choose from")
        arguments["protocol"] = options.protocol
        given.pop("protocol", None)
    if in_one_mapping:
        arguments |= {setting: value for setting, value in given.items() if setting in known}
        arguments["settings"] = {setting: value for setting, value in given.items() if setting not in known}
        return arguments
    for setting in given:
        if setting in reserved & (keywords | {"num_envs", "seeds"}):
            raise EnvError(
                f"{name}: the setting {setting!r} cannot reach the environment, because {function.__name__}() of the "
                f"family has a parameter of this name; a parameter `settings` would take every setting"
            )
        if setting not in known and not any_keyword:
            raise EnvError(f"{name}: no such setting {setting!r}{suggest(setting, known)}")
    return arguments | given


def make_spec(name: str, options: EnvOptions | Settings | None = None, env_index: int = 0) -> EnvSpec:
    """Build one environment, read its spec and its own spaces, and close it."""
    group = make_group(name, 1, [0], options, env_index=env_index)
    group.close()
    return replace(group.spec, spaces=spaces_to_json(group))


def make_specs(
    names: Sequence[str], options: EnvOptions | Settings | None = None, env_index: int = 0
) -> tuple[EnvSpec, ...]:
    """Return the specs of tasks that share one policy. Raises EnvError if their spaces differ."""
    specs = tuple(make_spec(name, options, env_index) for name in names)
    for spec in specs[1:]:
        for field in ("obs", "actions", "mask", "frame_skip"):
            expected, got = getattr(specs[0], field), getattr(spec, field)
            if field == "obs" and _arrays(expected) == _arrays(got):
                continue  # the bounds of the first task are used
            if expected != got:
                hint = "; for Atari games, --env.settings.full-action-space true gives all the same actions"
                raise EnvError(
                    f"{specs[0].name} and {spec.name} cannot share a policy: {field} {_format(expected)} is not "
                    f"{_format(got)}{hint if field == 'actions' and name_family(spec.name) == 'atari' else ''}"
                )
    return specs


def check_spaces(expected: EnvSpec, group: Group) -> Group:
    """Return the group. Raises EnvError if its spaces are not those that the run was prepared for."""
    for field in ("obs", "actions"):
        before, now = _format(getattr(expected, field)), _format(getattr(group.spec, field))
        if before != now:
            raise EnvError(
                f"{group.spec.name}: {field} {now} is not {before}, which the first environment of the run had; all "
                "copies must have the same spaces",
                fault=True,
            )
    own = spaces_to_json(group)
    if expected.name == group.spec.name and expected.spaces is not None and own not in (None, expected.spaces):
        spaces = zip(("observation", "action"), spaces_from_json(expected.spaces), strict=True)
        differences = [
            f"{kind} space {one_line_space(now)} is not {one_line_space(before)}"
            for kind, before in spaces
            if expected.spaces[kind] != own[kind] and (now := getattr(group, f"{kind}_space")) is not None
        ]
        raise EnvError(
            f"{group.spec.name}: {', '.join(differences)}, which the first environment of the run had; all copies must "
            "have the same spaces",
            fault=True,
        )
    return group


def name_family(name: str) -> str:
    """Return the family part of a name: atari/pong -> atari; empty for a class or function of the user's own."""
    return "" if is_python_target(name) else name.partition("/")[0]


def _arrays(obs: Mapping[str, Leaf]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every leaf."""
    return {name: (leaf.shape, leaf.dtype) for name, leaf in obs.items()}


def _format(value: Any) -> str:
    """Format a field of a spec for an error message."""
    if not isinstance(value, Mapping):
        return repr(value)
    return ", ".join(f"{n} {getattr(leaf, 'sizes', leaf.shape)} {leaf.dtype}" for n, leaf in value.items())
