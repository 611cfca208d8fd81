"""`sfactory bench`: measure speed and compare it with what the machine allows."""

from __future__ import annotations

import argparse
import json

from sfactory.cli.args import (
    Commands,
    add_config,
    add_json,
    add_target,
    complete,
    config_of,
    decimal,
    path,
    progress,
    quiet,
    refuse_fixed,
)
from sfactory.cli.exit_line import print_exit_line
from sfactory.cli.output import stdout_to_stderr
from sfactory.errors import Exit

NOTES = """\
  sfactory bench minatar/breakout                            costs, rooflines, shares, bottleneck
  sfactory bench atari/pong --search 120 --write best.toml   search for faster settings
  sfactory train atari/pong --config best.toml

Core time per step of every stage, and the speed that N cores reach with it, by three references:

  arithmetic            the network's operations at the speed of this machine's matrix products
  torch, best batch     plain torch at the cheapest batch and threads; the panel shows this share
  torch, these batches  plain torch at the run's batches and threads, with loss and optimizer

The environment is its own library in a plain loop. sfactory can be faster: a share above 100% is
possible. With a GPU each line is the environment alone. The column "this run" has sfactory's own
stages, each measured alone. With several epochs or minibatches a second run has one pass over the
data. All figures are medians over parts of a run; on a busy machine they are too low. Steps are
those of agents. The costs of several tasks are weighed by the shares in which the run steps them.
"""


FIXED = {
    "run.dir": "the measured run is in a temporary folder",
    "run.mode": "the measured run is in async mode",
    "run.init_from": "the measured run begins with new weights",
    "stop.": "use --seconds",
    "sampling.auto": "the split is measured as it is set; `sfactory bench --search SECONDS` looks for a faster one",
    "log.every_seconds": "rows are written often",
    "log.wandb": "the measured run is not sent anywhere",
    "eval.every": "the measured run is not evaluated",
    "checkpoint.every_seconds": "the measured run saves no checkpoint",
    "checkpoint.milestones": "the measured run saves no checkpoint",
}
"""Settings that measuring sets itself -> what to do or to know instead."""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "bench",
        help="measure speed, its share of three rooflines, and the bottleneck",
        usage="sfactory bench TARGET [options] [--section.field value ...]",
        epilog=NOTES,
        pages="docs/performance.md",
    )
    add_target(parser)
    parser.add_argument(
        "--seconds", metavar="S", type=decimal(2), default=20.0, help="length of each measured run (20)"
    )
    text = "then search for faster settings for S seconds (0: do not)"
    parser.add_argument("--search", metavar="S", type=decimal(0), default=0.0, help=text)
    text = "write the settings found as TOML; searches for 60 s without --search"
    complete(parser.add_argument("--write", metavar="FILE", type=path, help=text), "file")
    add_config(parser)
    add_json(parser, "print everything as JSON on stdout")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure the workload, and search for faster settings if asked to."""
    from sfactory.config.toml_file import settings_to_toml
    from sfactory.device.machine import cores
    from sfactory.files import require_writable
    from sfactory.supervisor.cores import by_cores
    from sfactory.tools.bench import bench
    from sfactory.tools.tune import search

    refuse_fixed(options.settings, FIXED, "bench")
    if options.write:
        require_writable(options.write)
    budget = options.search or (60.0 if options.write else 0.0)
    config = config_of(options)
    log = quiet if options.json else progress
    with stdout_to_stderr():
        report = bench(options.word, by_cores(config, cores()), options.seconds, log)
    if not options.json:
        print(report.text())
    found = None
    if budget:
        log(f"\nsearching for faster settings, about {budget:g} s ...")
        with stdout_to_stderr():
            found = search(config, budget, learning=True, log=log)
    if options.json:
        print(json.dumps({**report.as_dict(), **({"search": found._asdict()} if found else {})}))
    elif found:
        print(found.text())
    if found and options.write:
        source = f"# Found by: sfactory bench {options.word} --search {budget:g}"
        options.write.write_text(f"{source}\n{settings_to_toml(found.settings)}")
        log(f"sfactory train {options.word} --config {options.write}")
    speed = f"{report.speed}, {100 * report.share:.0f}% of torch, best batch"
    return print_exit_line(Exit.FINISHED, "measured", speed)
