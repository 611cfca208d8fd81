"""`sfactory verify-resume`: check that a resumed run is equal to an uninterrupted one."""

from __future__ import annotations

import argparse

from sfactory.cli.args import Commands, add_target, config_of, refuse_fixed, whole
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import CommandError, Exit

DESCRIPTION = """\
Train TARGET twice in lockstep mode: without interruption, and killed with SIGKILL at random times and
resumed. Exit 0: weights, optimizer, running means, normalizers and metrics are equal bit for bit.
Exit 1: the differences are listed.
"""


FIXED = {
    "run.mode": "both runs are in lockstep mode",
    "run.dir": "both runs are in a temporary folder",
    "run.seed": "use --seed",
    "stop.": "use --steps",
    "log.every_updates": "there is a row of every update",
    "checkpoint.every_seconds": "one run saves often, the other one only at its end",
}
"""Settings that the command sets itself -> what to do or to know instead."""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "verify-resume",
        help="kill and resume a run, and compare it bit for bit",
        usage="sfactory verify-resume TARGET [options] [--section.field value ...]",
        description=DESCRIPTION,
        pages="docs/faults.md",
    )
    add_target(parser)
    text = "length of both runs in env steps (%(default)s)"
    parser.add_argument("--steps", metavar="N", type=whole(1), default=20_000, help=text)
    text = "how many times the second run is killed (%(default)s)"
    parser.add_argument("--kills", metavar="N", type=whole(0), default=3, help=text)
    text = "seed of the runs, and of the times of the kills (1)"
    parser.add_argument("--seed", metavar="N", type=whole(0), default=1, help=text)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train both runs and compare them."""
    from sfactory.tools.verify_resume import TrialRunFailed, verify_resume

    refuse_fixed(options.settings, FIXED, "verify-resume")
    config_of(options)  # report mistakes before any run starts
    flags = [f"--{name.replace('_', '-')}={_typed(given.value)}" for name, given in options.settings.items()]
    try:
        differences = verify_resume([options.word, *flags], options.steps, options.kills, options.seed, print)
    except TrialRunFailed as error:
        raise CommandError(error.exit_code, f"nothing was verified: {error}") from error
    if differences:
        print("not equal:", *differences, sep="\n  ")
        return print_exit_line(
            Exit.BUG, "not exact", f"{options.word} killed {options.kills} times and resumed is not the same run"
        )
    return print_exit_line(
        Exit.FINISHED, "exact", f"{options.word} killed {options.kills} times and resumed is the same run"
    )


def _typed(value: object) -> str:
    """A value as it is written behind `=`."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
