"""`sfactory info`: describe a run or a checkpoint, and verify its files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sfactory.cli.args import Commands, add_json, add_run
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import CommandError, Exit

DESCRIPTION = """\
Describe a checkpoint (of a run: its newest usable one): versions, steps, task, parameters per module,
files, date, and whether every byte is as it was written; then list the other checkpoints of the run.
Files of unknown origin are safe to open: nothing in them is executed, nothing is written or moved.
Exit 0: intact. Exit 5: damaged.
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "info",
        help="describe a checkpoint and verify its files",
        usage="sfactory info runs/NAME | runs/NAME/checkpoints/N",
        description=DESCRIPTION,
        pages="docs/faults.md",
    )
    parser.refusal = "info takes no settings"
    add_run(parser, "runs/NAME or checkpoint", "folder of a run or of a checkpoint")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read the folder and print what it holds."""
    from sfactory.tools.info import info

    path = Path(options.word)
    if not path.exists():
        raise CommandError(Exit.USAGE, f"{path} does not exist")
    found = info(path)
    print(json.dumps(found.as_dict()) if options.json else found.report())
    if found.wrong:
        return print_exit_line(Exit.NO_USABLE_CHECKPOINT, "damaged", f"{found.path}: {found.wrong}")
    return print_exit_line(Exit.FINISHED, "verified", f"{found.path} is as it was written")
