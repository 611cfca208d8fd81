"""`sfactory verify-resume`."""

from __future__ import annotations

from sfactory.cli.args import numbers, one_word
from sfactory.errors import CommandError, Exit, print_exit_line


def verify(args: list[str]) -> int:
    """Kill and resume, and compare."""
    from sfactory.config import parsing, presets
    from sfactory.tools.verify_resume import RunFailed, verify_resume

    defaults = {"--steps": 20_000, "--kills": 3, "--seed": 1}
    flags, own, positionals = presets.split_flags(args, dict.fromkeys(defaults, True))
    count = numbers(own, defaults)
    target = one_word(positionals, "TARGET")
    parsing.build(*presets.target_layers(target), flags)  # mistakes are answered here, before anything runs
    values = {name: given.value for name, given in flags.items()}
    words = [
        f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in values.items()
    ]
    try:
        found = verify_resume([target, *words], count["--steps"], count["--kills"], count["--seed"], print)
    except RunFailed as error:
        raise CommandError(Exit.USAGE, f"nothing was verified: {error}") from error
    if found:
        print("not the same:", *found, sep="\n  ")
        return print_exit_line(Exit.BUG, "not exact", f"{target} killed {count['--kills']} times and resumed differs")
    return print_exit_line(Exit.FINISHED, "exact", f"{target}, killed {count['--kills']} times and resumed, is the same run")
