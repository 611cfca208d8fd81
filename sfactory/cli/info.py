"""`sfactory info`."""

from __future__ import annotations

import json
from pathlib import Path

from sfactory.cli.args import one_word, only_own
from sfactory.errors import CommandError, Exit, print_exit_line


def info(args: list[str]) -> int:
    """What a run or a checkpoint is; nothing of it is executed, nothing is written."""
    from sfactory.tools.info import info as read

    own, positionals = only_own(args, {"--json": False}, "info")
    path = Path(one_word(positionals, "runs/NAME or checkpoint"))
    if not path.exists():
        raise CommandError(Exit.USAGE, f"{path} does not exist")
    found = read(path)
    print(json.dumps(found.as_dict()) if "--json" in own else found.report())
    if found.wrong:
        return print_exit_line(Exit.NO_USABLE_CHECKPOINT, "damaged", f"{found.path}: {found.wrong}")
    return print_exit_line(Exit.FINISHED, "verified", f"{found.path} is as it was written")
