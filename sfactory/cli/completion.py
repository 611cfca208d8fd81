"""`sfactory completion`."""

from __future__ import annotations

from collections.abc import Mapping

from sfactory.cli.args import one_word, only_own
from sfactory.errors import CommandError, Exit


def completion(args: list[str], help_of: Mapping[str, str]) -> int:
    """A script for a shell, on stdout. help_of: verb -> its help."""
    from sfactory.cli.completion_scripts import SHELLS, script
    from sfactory.errors import did_you_mean

    _, positionals = only_own(args, {}, "completion")
    shell = one_word(positionals, " or ".join(SHELLS))
    if shell not in SHELLS:
        hint = did_you_mean(shell, SHELLS)
        raise CommandError(Exit.USAGE, f"{shell}: there are scripts for {', '.join(SHELLS)}{hint}")
    print(script(shell, help_of), end="")
    return 0
