"""`sfactory doctor`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from sfactory.exits import Exit, last_line
from sfactory.verbs.words import no_words, only_own


def doctor(args: list[str]) -> int:
    """What of this machine helps or hinders training."""
    from sfactory.doctor import examine, report

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
        return last_line(Exit.RESOURCES, "cannot train here", said)
    notes = f", {len(warned)} warnings" if warned else ""
    return last_line(Exit.FINISHED, "healthy", f"nothing prevents training{notes}")
