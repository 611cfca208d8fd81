"""`sfactory pbt`: train a population whose members take over each other's policies and settings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sfactory.cli.args import (
    Commands,
    add_config,
    add_dir,
    add_json,
    add_launcher,
    add_target,
    decimal,
    launcher_options,
    opened_launcher,
    whole,
)
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import Exit

if TYPE_CHECKING:
    from sfactory.run.history import History

DESCRIPTION = """\
Members that are clearly below take over the policy and the settings of a leader, changed a little.
  sfactory pbt minatar/breakout --members 8 --jobs 2 --dir runs/pbt --sample optim.lr=5e-4..5e-3
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "pbt",
        help="train a population that exchanges policies and settings",
        usage="sfactory pbt TARGET --dir DIR [options] [--section.field value ...]",
        description=DESCRIPTION,
        pages="docs/populations.md",
    )
    add_target(parser)
    add_dir(parser, "folder of the population")
    parser.add_argument("--members", metavar="N", type=whole(2), default=8, help="members (%(default)s)")
    text = "first values: NAME=V1,V2 or NAME=LOW..HIGH; repeatable"
    parser.add_argument("--sample", metavar="NAME=VALUES", action="append", default=[], help=text)
    text = "settings that change: names, or NAME=V1,V2; repeatable (those of --sample)"
    parser.add_argument("--mutate", metavar="NAMES", action="append", default=[], help=text)
    text = "env steps between exchanges, as stop.env-steps counts them (5M)"
    parser.add_argument("--period", metavar="N", type=whole(1), default=5_000_000, help=text)
    text = "env steps before the first exchange (20M)"
    parser.add_argument("--start", metavar="N", type=whole(0), default=20_000_000, help=text)
    text = "share that may be replaced, and share of the leaders (%(default)s)"
    parser.add_argument("--replace", metavar="X", type=decimal(0), default=0.3, help=text)
    text = "replace a member only if its score is lower by more than this (0)"
    parser.add_argument("--gap", metavar="X", type=decimal(0), default=0.0, help=text)
    text = "probability that a setting changes (%(default)s)"
    parser.add_argument("--mutation-rate", metavar="P", type=decimal(0), default=0.15, help=text)
    text = "rounds or anytime (rounds in lockstep, else anytime)"
    parser.add_argument("--exchange", metavar="WHEN", choices=("rounds", "anytime"), help=text)
    add_launcher(parser, "members that train at the same time")
    add_config(parser)
    add_json(parser, "print the history as JSON on stdout")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Plan the population, train it, write its page."""
    from sfactory.config import presets
    from sfactory.errors import CommandError
    from sfactory.population.plan import Options, check_period, make_plan
    from sfactory.population.population import Population, finished_before, result_of, shared_config
    from sfactory.population.runner import locked_folder
    from sfactory.supervisor.specs import read_specs

    if options.dir is None:
        raise CommandError(Exit.USAGE, "--dir: a population needs a folder; the same command finds it again")
    launcher_options(options)
    asked = Options(
        members=options.members,
        period=options.period,
        start=options.start,
        replace=options.replace,
        gap=options.gap,
        mutation_rate=options.mutation_rate,
        rounds=None if options.exchange is None else options.exchange == "rounds",
    )
    layers = [*presets.target_layers(options.word, options.config), options.settings]
    plan = make_plan(options.dir, layers, asked, options.sample, options.mutate)
    if (history := finished_before(plan)) is not None:
        return _end(plan.folder, history, Exit.FINISHED, result_of(plan.folder, history), options.json)
    spec = read_specs(shared_config(plan))[0]
    check_period(plan, spec.rows)
    if plan.exchanges_nothing:
        steps = f"{plan.config.stop.env_steps:,}"
        print(
            f"sfactory: note: nothing is exchanged: members end at stop.env-steps {steps}, with --period "
            f"{asked.period:,} and --start {asked.start:,}; smaller ones let them take over policies",
            file=sys.stderr,
        )
    with opened_launcher(options, plan.folder, options.members) as (launcher, resources), locked_folder(plan.folder):
        finished_before(plan)  # another command may have written the folder meanwhile
        population = Population(plan, options.jobs, launcher, resources, spec.frame_skip)
        code, sentence = population.run()
        return _end(plan.folder, population.history, code, sentence, options.json)


def _end(folder: Path, history: History, code: Exit, sentence: str, as_json: bool) -> int:
    """Write the page of what there is, print the result and the exit line."""
    from sfactory.files import replace_text
    from sfactory.run.history import as_json as to_json
    from sfactory.tools.population_page import population_page

    if history.records:
        replace_text(folder / "report.html", population_page(folder, history))
    if as_json:
        print(json.dumps(to_json(history)))
        sys.stdout.flush()
    return print_exit_line(code, code.outcome, sentence)
