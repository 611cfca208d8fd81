"""`sfactory presets`: list the presets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sfactory.cli.args import Commands, add_word

if TYPE_CHECKING:
    from sfactory.config.scores import PresetScore

UNKNOWN = "-"
DESCRIPTION = """\
List the presets: settings for single tasks, with their environment and a description, and where they
were measured the score, the steps and the minutes of a run. With WORD only those with it in the name
of the preset or of its environment.
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "presets",
        help="list the presets",
        usage="sfactory presets [WORD]",
        description=DESCRIPTION,
        pages="docs/presets.md",
    )
    parser.refusal = "presets takes no settings"
    add_word(parser, "WORD", "as atari or hopper", "target", optional=True)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print name, environment, recorded score and description of every preset, or of those that were asked for."""
    from sfactory.config.presets import family_defaults, presets, suggestion
    from sfactory.config.scores import read_scores
    from sfactory.errors import CommandError, Exit, SettingError

    word = options.word.lower()
    found = [one for one in [*presets(), *family_defaults()] if word in one.name or word in one.env.lower()]
    if not found:
        hint = suggestion(options.word) or "; without a word all are listed"
        raise CommandError(Exit.USAGE, f"{options.word}: no preset has this in its name or environment{hint}")
    try:
        scores = read_scores()
    except SettingError as error:  # the list is of use without them
        print(f"sfactory: note: {error}", file=sys.stderr)
        scores = {}
    if scores:
        rows = [[one.name, one.env, *columns(scores.get(one.name)), one.description] for one in found]
        rows.insert(0, ["preset", "environment", "score", "steps", "minutes", "description"])
    else:
        rows = [[one.name, one.env, one.description] for one in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        padded = [row[i].rjust(width) if i > 1 else row[i].ljust(width) for i, width in enumerate(widths)]
        print("  ".join([*padded, row[-1]]))
    print("\nsfactory train PRESET starts one; sfactory train PRESET --print-config shows its settings.")
    print("With *: any other environment of a family, as sfactory train atari/breakout (list: sfactory envs atari).")
    print("Environments without presets, as my_file:MyEnv, have the settings of gymnasium/*.")
    shown = {one.name: scores[one.name] for one in found if one.name in scores}
    for line in notes(shown) or [f"No scores {'of these ' if scores else ''}are recorded."]:
        print(line)
    return 0


def columns(found: PresetScore | None) -> tuple[str, str, str]:
    """Score, steps and minutes of one preset."""
    from sfactory.monitor.format import human

    if found is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    minutes = found.seconds / 60
    return f"{found.score:.4g}", human(found.steps), f"{minutes:.{0 if minutes >= 10 else 1}f}{'*' * found.busy}"


def notes(scores: Mapping[str, PresetScore]) -> list[str]:
    """What the numbers are, and on which machine they were measured; nothing without scores."""
    lines = []
    for what in dict.fromkeys(one.what for one in scores.values()):
        names = [name for name, one in scores.items() if one.what == what]
        lines.append(f"score: {what} of the last policy, over seeds{_only(names, scores)}")
    for machine in dict.fromkeys(one.machine for one in scores.values()):
        names = [name for name, one in scores.items() if one.machine == machine]
        date = max(scores[name].date for name in names)
        lines.append(f"minutes: of one run, on {machine}, {date}{_only(names, scores)}")
    if any(one.busy for one in scores.values()):
        lines.append("*: other programs used the processor too, so it took longer")
    return lines


def _only(names: list[str], scores: Mapping[str, PresetScore]) -> str:
    """The presets that a note is about; empty if it is about all."""
    return "" if len(names) == len(scores) else f": {', '.join(names)}"
