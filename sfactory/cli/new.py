"""`sfactory new`: write the file of an environment to begin with."""

from __future__ import annotations

import argparse
import shlex

from sfactory.cli.args import Commands, add_word
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import Exit

DESCRIPTION = """\
Write a file with an environment that works: a paddle catches falling balls. It has everything that
training, evaluation and videos need; change it into your task. The class is MyEnv unless it is named.
A file that exists is never changed (exit 2).
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "new",
        help="write the file of an environment to begin with",
        usage="sfactory new my_env.py:MyEnv",
        description=DESCRIPTION,
        pages="docs/your-environment.md",
    )
    parser.refusal = "new takes no settings"
    add_word(parser, "FILE:CLASS", "file to write, and the name of the class in it", "file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the file and name the commands that follow."""
    from sfactory.tools.new_env import parse_new_env, write_new_env

    env = parse_new_env(options.word)
    write_new_env(env)
    target, folder = shlex.quote(env.target), f"runs/{env.name.lower()}"
    print(f"check   sfactory check-env {target}")
    print(f"train   sfactory train {target} --stop.env-steps 150k --run.dir {folder}")
    print(f"film    sfactory eval {folder} --greedy --video {env.name.lower()}.mp4")
    return print_exit_line(Exit.FINISHED, "written", f"{env.path}; change it into your environment")
