"""`sfactory doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from sfactory.cli.args import no_words, only_own
from sfactory.errors import Exit, print_exit_line


def doctor(args: list[str]) -> int:
    """What of this machine helps or hinders training."""
    from sfactory.tools.doctor import examine, report

    own, positionals = only_own(args, {"--json": False, "--dir": True}, "doctor")
    no_words(positionals)
    found = examine(Path(own["--dir"][-1]) if "--dir" in own else None)
    bad, warned = ([f for f in found if f.level == level] for level in ("bad", "warn"))
    if "--json" in own:
        print(json.dumps({"findings": [asdict(f) for f in found], "bad": len(bad), "warn": len(warned)}))
    else:
        report(found, sys.stdout.write)
    if bad:
        said = "; ".join(f"{f.topic}: {f.found}: {f.advice}" for f in bad)
        return print_exit_line(Exit.RESOURCES, "cannot train here", said)
    notes = f", {len(warned)} warnings" if warned else ""
    return print_exit_line(Exit.FINISHED, "healthy", f"nothing prevents training{notes}")
