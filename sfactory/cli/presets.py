"""`sfactory presets`: list the presets."""

from __future__ import annotations

import argparse

from sfactory.cli.args import Commands


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "presets",
        help="list the presets",
        usage="sfactory presets",
        description="List the presets: settings that work, with their environment and a description.",
    )
    parser.refusal = "presets takes no settings"
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print name, environment and description of every preset."""
    from sfactory.config.presets import family_defaults, presets

    found = presets()
    widths = max(len(preset.name) for preset in found), max(len(preset.env) for preset in found)
    for preset in [*found, *family_defaults()]:
        print(f"{preset.name:{widths[0]}}  {preset.env:{widths[1]}}  {preset.description}")
    print("\nsfactory train PRESET starts one; sfactory train PRESET --print-config shows its settings.")
    print("With *: any other environment of a family, as sfactory train atari/breakout (list: sfactory envs atari).")
    print("Environments without presets, as my_file:MyEnv, have the settings of gymnasium/*.")
    return 0
