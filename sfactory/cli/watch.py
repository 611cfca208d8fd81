"""`sfactory watch`: the live panel of a run elsewhere."""

from __future__ import annotations

from pathlib import Path

from sfactory.cli.args import one_word
from sfactory.errors import Exit, print_exit_line
from sfactory.run.folder import require_config_file


def watch(args: list[str]) -> int:
    """Follow the files of a run until it is over."""
    from sfactory.tools.watch import watch as look

    run_dir = Path(one_word(args, "runs/NAME"))
    require_config_file(run_dir)
    seen = look(run_dir)
    return print_exit_line(Exit.FINISHED, "watched", f"{run_dir}: {seen.state}, {seen.env_steps:,} steps")
