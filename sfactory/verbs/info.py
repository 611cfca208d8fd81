"""`sfactory info`."""

from __future__ import annotations

import json
from pathlib import Path

from sfactory.exits import Ended, Exit, last_line
from sfactory.verbs.words import one_word, only_own


def info(args: list[str]) -> int:
    """What a run or a checkpoint is; nothing of it is executed, nothing is written."""
    from sfactory.info import info as read

    own, positionals = only_own(args, {"--json": False}, "info")
    path = Path(one_word(positionals, "runs/NAME or checkpoint"))
    if not path.exists():
        raise Ended(Exit.USAGE, f"{path} does not exist")
    found = read(path)
    print(json.dumps(found.as_dict()) if "--json" in own else found.report())
    if found.wrong:
        return last_line(Exit.NO_USABLE_CHECKPOINT, "damaged", f"{found.path}: {found.wrong}")
    return last_line(Exit.FINISHED, "verified", f"{found.path} is as it was written")
