"""`sfactory export`."""

from __future__ import annotations

import json
from pathlib import Path

from sfactory.cli.args import one_word, only_own
from sfactory.errors import CommandError, Exit, print_exit_line
from sfactory.run.folder import need_run


def export(args: list[str]) -> int:
    """The policy as one file, checked."""
    own, positionals = only_own(args, {"-o": True, "--out": True, "--json": False}, "export")
    run = Path(one_word(positionals, "runs/NAME"))
    out = [*own.get("-o", []), *own.get("--out", [])]
    if not out:
        raise CommandError(Exit.USAGE, f"export needs a file: sfactory export {run} -o policy.onnx, or -o policy.pt2")
    need_run(run)
    from sfactory.play.export import ExportMismatch, export  # brings torch, which a mistake need not wait for

    try:
        done = export(run, Path(out[-1]))
    except ExportMismatch as error:
        return print_exit_line(Exit.BUG, "not equal", f"nothing was kept of {out[-1]}: {error}")
    if "--json" in own:
        found = {"path": str(done.path), "difference": done.difference, "rows": done.rows, **done.metadata}
        print(json.dumps(found))
    else:
        print(done.report())
    return print_exit_line(Exit.FINISHED, "exported", done.sentence)
