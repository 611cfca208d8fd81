"""`sfactory export`: write a policy as one ONNX or PyTorch file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sfactory.cli.args import Commands, add_json, add_old_name, add_run, add_trust, complete, path
from sfactory.cli.exit_line import print_exit_line
from sfactory.cli.output import stdout_to_stderr
from sfactory.errors import CommandError, Exit
from sfactory.run.folder import require_run_or_checkpoint

DESCRIPTION = """\
Write the newest policy of runs/NAME, or the one of runs/NAME/checkpoints/N, as one file that does
not need sfactory: observations in; the most probable action, its parameters, value and recurrent
state out; any number of rows. Normalization of observations and bounds of actions are included.
The file is read back and compared with the policy on random observations; if it differs there
is no file (exit 1).
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "export",
        help="write the policy as one file that does not need sfactory",
        usage="sfactory export RUN -o policy.onnx | policy.pt2",
        description=DESCRIPTION,
        pages="docs/your-environment.md",
    )
    parser.refusal = "export takes no settings"
    add_run(parser, help="folder of a run or of a checkpoint")
    text = ".onnx (ONNX Runtime; pip install 'sfactory[onnx]') or .pt2 (torch.export.load)"
    output = parser.add_argument("-o", "--output", metavar="FILE", type=path, help=text)
    complete(output, "file")
    add_old_name(parser, "--out", output)
    add_trust(parser)
    add_json(parser, "print the file, its inputs and its outputs as one JSON object on stdout")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export the policy and compare the file with it."""
    source, out = Path(options.word), options.output
    if out is None:
        raise CommandError(Exit.USAGE, f"export needs a file: sfactory export {source} -o policy.onnx (or policy.pt2)")
    require_run_or_checkpoint(source)
    from sfactory import api
    from sfactory.monitor.format import printable
    from sfactory.play.export import ExportMismatch  # imports torch: after the checks

    try:
        with stdout_to_stderr():
            done = api.export(source, out, options.trust)
    except ExportMismatch as error:
        return print_exit_line(error.exit_code, "not equal", f"{out} was not written: {error}")
    if options.json:
        print(json.dumps({"path": str(done.path), "difference": done.difference, "rows": done.rows, **done.metadata}))
    else:
        print(printable(done.report()))
    return print_exit_line(Exit.FINISHED, "exported", done.sentence)
