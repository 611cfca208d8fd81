"""`sfactory check-env`: check whether an environment follows the rules that training relies on."""

from __future__ import annotations

import argparse
import json

from sfactory.cli.args import Commands, add_json, add_target, config_of, decimal, whole
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import Exit

DESCRIPTION = """\
Play a preset's environment, or FAMILY/ID, with random actions and check resets, final observations,
time limits, spaces, seeds and NaN; let the network act and train for a moment; measure the speed and
suggest a command that trains. Settings of training (--model.encoder nature) are tried too.
Exit 0: all checks passed. Exit 6: a check failed.
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "check-env",
        help="check an environment with random actions",
        usage="sfactory check-env TARGET [options] [--env.settings.KEY VALUE] [--section.field value]",
        description=DESCRIPTION,
        pages="docs/your-environment.md; requirements: docs/environments.md",
    )
    add_target(parser)
    text = "take random steps for at most S seconds (3)"
    parser.add_argument("--seconds", metavar="S", type=decimal(0), default=3.0, help=text)
    parser.add_argument("--seed", metavar="N", type=whole(0), default=0, help="seed of environments and actions (0)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check every task of the target and print the findings."""
    from sfactory import api

    config = config_of(options)
    env = config.env
    found = api.check_envs(
        config, seconds=options.seconds, seed=options.seed, target=options.word, flags=options.settings
    )
    if options.json:
        print(json.dumps([report.as_dict() for report in found] if len(found) > 1 else found[0].as_dict()))
    else:
        print("\n\n".join(report.text() for report in found))
    if any(report.bad for report in found):
        failed = [title for report in found for level, title, _ in report.findings if level == "bad"]
        return print_exit_line(Exit.ENVIRONMENT, "checks failed", f"{env.name}: {', '.join(failed)}")
    warnings = sum(level == "warn" for report in found for level, *_ in report.findings)
    more = f", with {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    return print_exit_line(Exit.FINISHED, "checked", f"{env.name} passed every check{more}")
