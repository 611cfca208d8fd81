"""`sfactory compare`: compare runs as a table, a picture, a page or JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys

from sfactory.cli.args import Commands, add_json, complete, path
from sfactory.cli.output import stdout_to_stderr
from sfactory.errors import CommandError, Exit

DESCRIPTION = """\
Compare learning curves and scores of several runs.

  sfactory compare runs/a* runs/b*                       a table
  sfactory compare runs/a* runs/b* -o plot.png           and a picture
  sfactory compare runs/a* runs/b* -o compare.html       and a page, also for a phone
  sfactory compare runs/minatar-breakout_sweep_1f0c2a    every run of a sweep

Runs with the same settings except their seed form one group. Scores (interquartile mean over seeds,
95 % stratified-bootstrap interval, probability of improvement over the first group) are taken where
the shortest run ends. Each task has its own table; human-normalized scores (Atari) are averaged over
tasks too. Runs under different protocols are refused.

  sfactory compare runs/a* runs/b* --metric eval/iqm --labels ours,baseline
"""
AXES = ("env_steps", "seconds")


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "compare",
        help="compare curves and scores of several runs, with intervals",
        usage="sfactory compare RUNS... [-o plot.png] [--by env_steps|seconds] [--metric NAME] [--labels A,B]",
        description=DESCRIPTION,
        pages="docs/quick-tour.md; corrections for stale data: docs/corrections.md",
    )
    parser.refusal = "compare takes runs as they are"
    complete(parser.add_argument("runs", nargs="*", metavar="RUNS", type=path, help="folders of runs or sweeps"), "run")
    text = ".png, .svg, .pdf or .html; without a suffix PNG and SVG; repeatable"
    output = parser.add_argument("-o", "--output", metavar="FILE", type=path, action="append", default=[], help=text)
    complete(output, "file")
    text = "compare at the same env_steps or seconds (env_steps; a picture shows both)"
    parser.add_argument("--by", metavar="AXIS", type=axis, help=text)
    text = "what is compared: a metric that the runs have, as eval/iqm or info/is_success (charts/episodic_return)"
    parser.add_argument("--metric", metavar="NAME", default=None, help=text)
    text = "names of the groups, in the order of the table (settings that differ; folders if these are more than 3)"
    parser.add_argument("--labels", metavar="A,B,...", type=names, default=[], help=text)
    add_json(parser, "print everything, curves too, as one JSON object on stdout")
    parser.set_defaults(run=run)


def axis(text: str) -> str:
    """Type of --by."""
    from sfactory.errors import did_you_mean

    if text not in AXES:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(AXES)}{did_you_mean(text, AXES)}")
    return text


def names(text: str) -> list[str]:
    """Type of --labels."""
    return [name.strip() for name in text.split(",")]


def run(options: argparse.Namespace) -> int:
    """Print the comparison and save the pictures."""
    from sfactory.tools.compare import text
    from sfactory.tools.comparison import compare

    if not options.runs:
        example = "for example: sfactory compare runs/a* runs/b* -o plot.png"
        raise CommandError(Exit.USAGE, f"expected RUNS, got none; {example}")
    if options.output:  # refused before the work, not after it
        from sfactory.tools import compare_plot

        pictures = [path for name in options.output for path in compare_plot.targets(name)]
    with stdout_to_stderr():
        chosen = {} if options.metric is None else {"metric": options.metric}
        found = compare(options.runs, options.by or AXES[0], labels=options.labels, **chosen)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print(json.dumps(found.as_dict()) if options.json else text(found, columns))
    if options.output:
        compare_plot.save(found, pictures, (options.by,) if options.by else AXES)
        print(f"written: {', '.join(map(str, pictures))}", file=sys.stderr)
    elif not options.json:
        print("\nFor a picture: the same command with -o plot.png (or .svg, .html)")
    return 0
