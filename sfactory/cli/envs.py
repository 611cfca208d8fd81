"""`sfactory envs`: list environment families, or the ids of one family."""

from __future__ import annotations

import argparse

from sfactory.cli.args import Commands, add_word
from sfactory.cli.output import stdout_to_stderr

KNOWN = {  # family -> (module it needs, extra that installs it, ids)
    "minatar": ("minatar", "minatar", "minatar/breakout minatar/seaquest"),
    "gymnasium": ("gymnasium", "", "gymnasium/CartPole-v1 gymnasium/Pendulum-v1"),
    "atari": ("ale_py", "atari", "atari/pong atari/breakout"),
    "envpool": ("envpool", "envpool", "envpool/Pong-v5"),
}


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "envs",
        help="list environment families, or the ids of one",
        usage="sfactory envs [FAMILY]",
        description="List environment families and how to install them; with FAMILY the ids of that family.",
        pages="docs/environments.md",
    )
    parser.refusal = "envs takes no settings"
    add_word(parser, "FAMILY", "as minatar or atari", "family", optional=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the families without importing any of them, or the ids of one."""
    from importlib.util import find_spec

    from sfactory.families import ENV_GROUP, families

    if options.word:
        from sfactory.envs import family_ids

        with stdout_to_stderr():
            ids = family_ids(options.word)
        for env_id in ids:
            print(f"{options.word}/{env_id}")
        return 0
    for family in families():
        module, extra, examples = KNOWN.get(family, ("", "", ""))
        if family == "faults":
            state, examples = "for tests", "environments that fail on demand"
        elif module and find_spec(module) is None:
            state = f"pip install 'sfactory[{extra}]'"
        else:
            state = "installed"
        print(f"{family:12} {state:34} {examples or f'{family}/ID'}".rstrip())
    print("\nYour own: sfactory train my_file:MyEnv, a class or function in a file of the current folder or a package.")
    print(f"A family of your own: an entry point of the group {ENV_GROUP}, then sfactory train FAMILY/ID.")
    return 0
