"""Environment interface: types, and functions that find and build environments by name. Does not import torch."""

from sfactory.envs.registry import (
    families,
    family_ids,
    load_family,
    make_group,
    make_spec,
    make_specs,
    missing_package,
    name_family,
    raw_loop,
    suggest,
)
from sfactory.envs.spec import (
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
    one_line,
)
from sfactory.errors import EnvError

Tally = EpisodeTally  # earlier name, still used by environment packages

__all__ = [
    "ActionLeaf",
    "EnvError",
    "EnvFault",
    "EnvSpec",
    "Episode",
    "EpisodeTally",
    "Group",
    "Leaf",
    "Settings",
    "Step",
    "Tally",
    "bounded",
    "env_fault",
    "families",
    "family_ids",
    "finite_rows",
    "info_numbers",
    "load_family",
    "make_group",
    "make_spec",
    "make_specs",
    "missing_package",
    "name_family",
    "next_seed",
    "one_line",
    "raw_loop",
    "suggest",
]
