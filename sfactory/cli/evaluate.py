"""`sfactory eval`."""

from __future__ import annotations

import json
from pathlib import Path

from sfactory.cli.args import numbers, one_word
from sfactory.errors import CommandError, Exit, print_exit_line
from sfactory.run.folder import need_checkpoint, settings_of


def evaluate(args: list[str]) -> int:
    """Play games with the newest policy."""
    from sfactory.config import parsing, presets
    from sfactory.play.evaluate import evaluate as play

    defaults = {"--episodes": 100, "--max-steps": 0, "--seed": 0, "--video-games": 1}
    options = {**dict.fromkeys(defaults, True), "--video": True, "--greedy": False, "--json": False}
    flags, own, positionals = presets.split_flags(args, options)
    if flags:
        raise CommandError(
            Exit.USAGE,
            f"{parsing.flag_name(next(iter(flags)))}: eval plays with the settings of the run; see --help",
        )
    count = numbers(own, defaults)
    if count["--episodes"] < 1 or count["--seed"] < 0 or ("--max-steps" in own and count["--max-steps"] < 1):
        raise CommandError(Exit.USAGE, "episodes and max-steps must be at least 1, and seed at least 0")
    video = Path(own["--video"][-1]) if "--video" in own else None
    if "--video-games" in own and video is None:
        raise CommandError(Exit.USAGE, "video-games says how many games are filmed; say where: --video FILE.mp4")
    run_dir = Path(one_word(positionals, "runs/NAME"))
    settings_of(run_dir)
    need_checkpoint(run_dir)
    games = count["--episodes"], "--greedy" in own, count["--max-steps"], count["--seed"]
    result = play(run_dir, *games, video, count["--video-games"])
    print(json.dumps(result.as_dict()) if "--json" in own else result.report())
    return print_exit_line(Exit.FINISHED, "evaluated", result.sentence)
