"""`sfactory watch`: show the live panel of a run that another process trains."""

from __future__ import annotations

import argparse
from pathlib import Path

from sfactory.cli.args import Commands, add_run
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import Exit
from sfactory.run.folder import require_config_file


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "watch",
        help="show the live panel of a run started elsewhere",
        usage="sfactory watch runs/NAME",
        description=(
            "Show the live panel of a run that was started in the background or on another terminal, from\n"
            "its files, until it ends. Ctrl-C ends this command, not the run. Without a terminal: one line\n"
            "from time to time."
        ),
        pages="docs/quick-tour.md",
    )
    parser.refusal = "watch takes no settings"
    add_run(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Follow the files of a run until it ends."""
    from sfactory.monitor.format import step_words
    from sfactory.tools.watch import watch

    run_dir = Path(options.word)
    require_config_file(run_dir)
    snapshot = watch(run_dir)
    reached = f"{snapshot.env_steps:,} {step_words(snapshot.row)[0]}"
    return print_exit_line(Exit.FINISHED, "watched", f"{run_dir}: {snapshot.state}, {reached}")
