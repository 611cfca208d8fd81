"""`sfactory doctor`: check whether this machine is ready for training."""

from __future__ import annotations

import argparse
import json
import sys

from sfactory.cli.args import Commands, add_json, complete, path
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import Exit

DESCRIPTION = """\
Check this machine, one line per finding, ok, warn or bad, with advice: Python and torch, cores and
the container's quota, BLAS threads, memory, shared memory, file descriptors, CUDA, bf16, a compiler,
rendering without a display, the folder of runs, and the extras with the command that installs them.
Exit 0: nothing prevents training; there may be warnings. Exit 11: something prevents it.
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine",
        usage="sfactory doctor [options]",
        description=DESCRIPTION,
        pages="docs/installing.md",
    )
    parser.refusal = "doctor takes no settings"
    text = "where runs would be written (./runs)"
    complete(parser.add_argument("--dir", metavar="DIR", type=path, help=text), "directory")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings."""
    from dataclasses import asdict

    from sfactory.tools.doctor import examine, report

    found = examine(options.dir)
    bad, warned = ([finding for finding in found if finding.level == level] for level in ("bad", "warn"))
    if options.json:
        print(json.dumps({"findings": [asdict(f) for f in found], "bad": len(bad), "warn": len(warned)}))
    else:
        report(found, sys.stdout.write)
    if bad:
        sentence = "; ".join(f"{f.topic}: {f.found}: {f.advice}" for f in bad)
        return print_exit_line(Exit.RESOURCES, "cannot train here", sentence)
    notes = f", {len(warned)} warnings" if warned else ""
    return print_exit_line(Exit.FINISHED, "healthy", f"nothing prevents training{notes}")
