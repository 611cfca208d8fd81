"""Find an environment family by name and build groups and specs.

Families are entry points of the group `sfactory.envs`; docs/extending.md shows how a package adds one. This module does
not import torch, and it imports a family's package only when one of its groups is built.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from sfactory.envs.spec import EnvSpec, Group, Leaf, Settings, one_line
from sfactory.errors import EnvError, did_you_mean


def suggest(word: str, known: Iterable[str], most: int = 12) -> str:
    """The end of an error message: `; did you mean a?`, or else the names that exist."""
    names = sorted(known)
    listed = f"; there are {', '.join(names[:most])}{', ...' if len(names) > most else ''}"
    return did_you_mean(word, names) or listed


def missing_package(name: str, package: str, extra: str) -> EnvError:
    """The error for a family whose package is not installed, with the command that mends it."""
    return EnvError(f"{name} needs {package}, which is not installed: pip install 'sfactory[{extra}]'")


def families() -> dict[str, EntryPoint]:
    """List the installed environment families by name, without importing them."""
    return {point.name: point for point in entry_points(group="sfactory.envs")}


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


def raw_loop(name: str, num_envs: int, seed: int, settings: Settings | None = None) -> Callable[[], int] | None:
    """Return a plain loop over the library behind `FAMILY/ID`, with random actions and without sfactory's adapters.

    Each call steps `num_envs` environments once and returns the number of steps. None if the family has no `raw_loop`.
    """
    family, _, env_id = name.partition("/")
    module = sys.modules[load_family(family).__module__]
    if not hasattr(module, "raw_loop"):
        return None
    loop: Callable[[], int] = module.raw_loop(env_id, num_envs, seed, **(settings or {}))
    return loop


def make_group(
    name: str,
    num_envs: int,
    seeds: Sequence[int],
    settings: Settings | None = None,
    exact: bool = False,
    render: bool = False,
) -> Group:
    """Build a group of `FAMILY/ID` environments.

    num_envs, seeds: number of environments and one seed for each.
    settings: keyword arguments for the family's `make`.
    exact: build a group that has `snapshot`, if the family's `make` takes `exact`; it may be slower.
    render: build a group that has `render`; it may be slower.
    Raises EnvError for an unknown family, id or setting, a missing package, a constructor that raises, or no `render`.
    """
    if len(seeds) != num_envs or num_envs < 1:
        raise EnvError(f"{name}: {num_envs} environments need as many seeds (got {len(seeds)})")
    family, _, env_id = name.partition("/")
    if not env_id:
        raise EnvError(f"environment {name!r}: write FAMILY/ID, for example gymnasium/CartPole-v1")
    make = load_family(family)
    parameters = inspect.signature(make).parameters.values()
    accepted = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    known = accepted - {"num_envs", "seeds", "exact", "render_mode"}
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for setting in settings or {}:
        if setting not in known and not accepts_any:
            raise EnvError(f"{name}: no such setting {setting!r}{suggest(setting, known)}")
    options: dict[str, Any] = {"exact": exact} if "exact" in accepted else {}
    if render:
        if "render_mode" not in accepted and not accepts_any:
            raise EnvError(f"{name}: no video, because make() of the family {family} has no parameter render_mode")
        options["render_mode"] = "rgb_array"
    try:
        group = make(env_id, num_envs=num_envs, seeds=list(seeds), **{**(settings or {}), **options})
    except EnvError:
        raise
    except ModuleNotFoundError as error:
        raise missing_package(name, error.name or "a package", family) from error
    except Exception as error:
        raise EnvError(f"{name} could not be built: {one_line(error)}", fault=True) from error
    if render and not hasattr(group, "render"):
        group.close()
        raise EnvError(f"{name}: no video, because its group has no method render")
    return group


def make_spec(name: str, settings: Settings | None = None) -> EnvSpec:
    """Build one environment, read its spec and close it."""
    group = make_group(name, 1, [0], settings)
    group.close()
    return group.spec


def make_specs(names: Sequence[str], settings: Settings | None = None) -> tuple[EnvSpec, ...]:
    """Return the specs of tasks that share one policy. Raises EnvError if their spaces differ."""
    specs = tuple(make_spec(name, settings) for name in names)
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


def name_family(name: str) -> str:
    """Return the family part of a name: atari/pong -> atari."""
    return name.partition("/")[0]


def _arrays(obs: Mapping[str, Leaf]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every leaf."""
    return {name: (leaf.shape, leaf.dtype) for name, leaf in obs.items()}


def _format(value: Any) -> str:
    """Format a field of a spec for an error message."""
    if not isinstance(value, Mapping):
        return repr(value)
    return ", ".join(f"{n} {getattr(leaf, 'sizes', leaf.shape)} {leaf.dtype}" for n, leaf in value.items())
