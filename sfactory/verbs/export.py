"""`sfactory export`."""

from __future__ import annotations

import json
from pathlib import Path

from sfactory.exits import Ended, Exit, last_line
from sfactory.run_folder import need_run
from sfactory.verbs.words import one_word, only_own


def export(args: list[str]) -> int:
    """The policy as one file, checked."""
    own, positionals = only_own(args, {"-o": True, "--out": True, "--json": False}, "export")
    run = Path(one_word(positionals, "runs/NAME"))
    out = [*own.get("-o", []), *own.get("--out", [])]
    if not out:
        raise Ended(Exit.USAGE, f"export needs a file: sfactory export {run} -o policy.onnx, or -o policy.pt2")
    need_run(run)
    from sfactory.export import NotEqual, export  # brings torch, which a mistake need not wait for

    try:
        done = export(run, Path(out[-1]))
    except NotEqual as error:
        return last_line(Exit.BUG, "not equal", f"nothing was kept of {out[-1]}: {error}")
    if "--json" in own:
        found = {"path": str(done.path), "difference": done.difference, "rows": done.rows, **done.metadata}
        print(json.dumps(found))
    else:
        print(done.report())
    return last_line(Exit.FINISHED, "exported", done.sentence)
