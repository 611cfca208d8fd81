"""`sfactory profile`: a timeline of all workers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sfactory.cli.args import Commands, add_config, add_target, complete, config_of, decimal, path, refuse_fixed
from sfactory.cli.bench import FIXED
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import CommandError, Exit

NOTES = """\
  sfactory profile minatar/breakout -o trace.json        then open it at https://ui.perfetto.dev

One row per process, one block per stage: what each worker did when, and what it waited for. A table
of the stages is printed too: share of the worker's time, how often, mean and longest duration.
"""
LONGEST = 600


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "profile",
        help="record one timeline of all processes",
        usage="sfactory profile TARGET [options] [--section.field value ...]",
        epilog=NOTES,
        pages="docs/performance.md",
    )
    add_target(parser)
    text = "the timeline, in the Trace Event Format (trace.json)"
    output = parser.add_argument("-o", "--output", metavar="FILE", type=path, default=Path("trace.json"), help=text)
    complete(output, "file")
    text = "length of the timeline: the last S seconds of a short run (2)"
    parser.add_argument("--seconds", metavar="S", type=decimal(0), default=2.0, help=text)
    add_config(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train for a short time and write the timeline of its last seconds."""
    from sfactory.config import with_settings
    from sfactory.files import require_writable
    from sfactory.tools import timeline
    from sfactory.tools.bench import trial

    seconds, path = options.seconds, options.output
    if not 0 < seconds <= LONGEST:
        raise CommandError(Exit.USAGE, f"--seconds must be more than 0 and at most {LONGEST}, got {seconds:g}")
    refuse_fixed(options.settings, FIXED, "profile")
    require_writable(path)
    config = with_settings(config_of(options), {"run.profile": True})
    spans: list[timeline.Span] = []
    whole = trial(config, seconds, lambda run: spans.extend(timeline.last(timeline.read(run / "debug"), seconds)))
    path.write_text(json.dumps(timeline.trace_events(spans)))
    print(timeline.table(spans))
    print(f"\nopen {path} at https://ui.perfetto.dev (nothing is uploaded) or in chrome://tracing")
    speed = f"{whole.steps_per_second:,.0f} {whole.unit}/s"
    sentence = f"{len(spans):,} stages of the last {seconds:g} s at {speed} in {path}"
    return print_exit_line(Exit.FINISHED, "profiled", sentence)
