"""Environment interface: types, and functions that find and build environments by name. Does not import torch."""

from sfactory.envs.build_clock import build_clock, listen_to_builds
from sfactory.envs.options import EnvOptions
from sfactory.envs.python_target import is_python_target
from sfactory.envs.registry import (
    check_spaces,
    families,
    family_ids,
    load_family,
    make_group,
    make_spec,
    make_specs,
    missing_package,
    name_family,
    raw_loop,
)
from sfactory.envs.spec import (
    NO_SETTINGS,
    ActionLeaf,
    EnvFault,
    EnvSpec,
    Episode,
    EpisodeTally,
    Group,
    Leaf,
    Settings,
    Step,
    bounded,
    env_fault,
    finite_rows,
    info_numbers,
    next_seed,
)
from sfactory.errors import EnvError, one_line, shortened, suggest

Tally = EpisodeTally  # earlier name, still used by environment packages

__all__ = [
    "NO_SETTINGS",
    "ActionLeaf",
    "EnvError",
    "EnvFault",
    "EnvOptions",
    "EnvSpec",
    "Episode",
    "EpisodeTally",
    "Group",
    "Leaf",
    "Settings",
    "Step",
    "Tally",
    "bounded",
    "build_clock",
    "check_spaces",
    "env_fault",
    "families",
    "family_ids",
    "finite_rows",
    "info_numbers",
    "is_python_target",
    "listen_to_builds",
    "load_family",
    "make_group",
    "make_spec",
    "make_specs",
    "missing_package",
    "name_family",
    "next_seed",
    "one_line",
    "raw_loop",
    "shortened",
    "suggest",
]
