"""`sfactory sweep`: train one run per seed and cell of a grid, and compare them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfactory.cli.args import (
    Commands,
    add_config,
    add_dir,
    add_json,
    add_launcher,
    add_target,
    launcher_options,
    opened_launcher,
)
from sfactory.cli.exit_line import print_exit_line

if TYPE_CHECKING:
    from sfactory.population.jobs import Job

DESCRIPTION = """\
  sfactory sweep minatar/breakout --seeds 0..4 --grid optim.lr=1e-4,3e-4 --jobs 2

Train one run per seed and cell of the grid, each in a process and a folder of its own, and print a
table at the end. The same command again continues; runs that have finished are skipped.
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "sweep",
        help="train several seeds and settings, and compare them",
        usage="sfactory sweep TARGET [options] [--section.field value ...]",
        description=DESCRIPTION,
        epilog="Exit code: 0, or that of the first failed run; 130 after Ctrl-C, 143 after SIGTERM, all saved.",
        pages="docs/populations.md",
    )
    add_target(parser)
    parser.add_argument("--seeds", metavar="S", default="0..2", help="0..4 (five seeds) or 1,5,7 (%(default)s)")
    text = "values of a setting, as model.hidden=64,128+32; repeatable"
    parser.add_argument("--grid", metavar="NAME=V1,V2", action="append", default=[], help=text)
    add_launcher(parser)
    add_dir(parser, "folder of the sweep (runs/<preset>_sweep_<settings>)")
    parser.add_argument("--retry", action="store_true", help="train failed runs again")
    add_config(parser)
    add_json(parser, "print the table as JSON on stdout, as compare does")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Plan all runs, train them, compare them."""
    from sfactory.config import presets
    from sfactory.population.jobs import parse_seeds, plan_jobs
    from sfactory.population.runner import Sweep, locked_folder
    from sfactory.supervisor.specs import read_specs

    launcher_options(options)
    base = [*presets.target_layers(options.word, options.config), options.settings]
    folder, plan = plan_jobs(options.word, base, options.grid, parse_seeds(options.seeds), options.dir)
    for config in {repr(job.config.env): job.config for job in plan}.values():
        read_specs(config)  # report an environment that cannot be built once, before any run
    with opened_launcher(options, folder, len(plan)) as (launcher, resources), locked_folder(folder):
        code, sentence = Sweep(folder, plan, options.jobs, options.retry, launcher, resources).run()
        print_table(plan, options.json)
    return print_exit_line(code, code.outcome, sentence)


def print_table(plan: Sequence[Job], as_json: bool) -> None:
    """Print the comparison of all runs that have metrics."""
    from sfactory.tools import compare
    from sfactory.tools.comparison import compare as compared

    folders = [job.run_dir for job in plan if (job.run_dir / "config.toml").is_file()]
    try:
        found = compared(folders)
    except ValueError as error:
        print(json.dumps({"panels": [], "notes": [str(error)]}) if as_json else f"no table: {error}")
        return
    print(json.dumps(found.as_dict()) if as_json else f"\n{compare.text(found)}")
    if not as_json:
        print(f"\nFor a picture: sfactory compare {folders[0].parent} -o plot.png")
    sys.stdout.flush()
