"""`sfactory watch`: the live panel of a run elsewhere."""

from __future__ import annotations

from pathlib import Path

from sfactory.exits import Exit, last_line
from sfactory.run_folder import settings_of
from sfactory.verbs.words import one_word


def watch(args: list[str]) -> int:
    """Follow the files of a run until it is over."""
    from sfactory.watch import watch as look

    run_dir = Path(one_word(args, "runs/NAME"))
    settings_of(run_dir)
    seen = look(run_dir)
    return last_line(Exit.FINISHED, "watched", f"{run_dir}: {seen.state}, {seen.env_steps:,} steps")
