"""`sfactory resume`: continue a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sfactory.cli.args import Commands, add_run, add_trust, settings_of
from sfactory.cli.output import stdout_to_stderr
from sfactory.cli.train import add_run_options, print_config, report

if TYPE_CHECKING:
    from sfactory.config import Config

EXAMPLES = """\
  sfactory resume runs/NAME --stop.env-steps 50M

The environment and the network cannot change (exit 4 lists the differences). --allow FIELD accepts
one change all the same, for example --allow env.settings.
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "resume",
        help="continue a run from its newest checkpoint",
        usage="sfactory resume runs/NAME [options] [--section.field value ...]",
        description="Continue from the newest usable checkpoint with the settings in config.toml; flags change them.",
        epilog=EXAMPLES,
        pages="docs/faults.md; every setting: docs/configuration.md, or --help-all",
    )
    add_run(parser)
    parser.add_argument("--allow", metavar="FIELD", action="append", default=[], help="accept a change of this setting")
    add_trust(parser)
    add_run_options(parser, config_of)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Apply files and flags to the settings of the run, then continue it."""
    from sfactory import api

    run_dir, config = Path(options.word), config_of(options)
    if options.print_config:
        return print_config(config)
    with stdout_to_stderr():
        outcome = api.resume_config(run_dir, config, options.allow, options.trust)
    return report(outcome, config, options.json)


def config_of(options: argparse.Namespace) -> Config:
    """The settings of the run, changed by files and flags."""
    from sfactory.config import parsing, presets
    from sfactory.run.folder import require_config_file as file_of

    run = presets.recorded_layer(file_of(Path(options.word)))
    return parsing.build(run, *map(presets.read_toml, options.config), settings_of(options))
