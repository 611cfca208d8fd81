"""`sfactory report`: write one run as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from sfactory.cli.args import Commands, add_run, complete, path

DESCRIPTION = """\
Write one run as one HTML page without scripts or network access: outcome, curves, lag, where the
time went, faults and events, configuration, checkpoints, videos of the folder.
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "report",
        help="write one run as an HTML page",
        usage="sfactory report runs/NAME [-o report.html]",
        description=DESCRIPTION,
        pages="docs/quick-tour.md; its metrics: docs/metrics.md",
    )
    parser.refusal = "report shows a run as it is"
    add_run(parser)
    text = "the page (runs/NAME/report.html); links to videos are relative to its folder"
    complete(parser.add_argument("-o", "--output", metavar="FILE", type=path, help=text), "file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from sfactory import api
    from sfactory.monitor.format import printable

    target = api.report(Path(options.word), options.output)
    print(printable(f"written: {target} ({target.stat().st_size / 1000:.0f} kB); open it in a browser"))
    return 0
