"""`sfactory eval`: play episodes with a policy of a run, alone or against another one."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from sfactory.cli.args import Commands, add_json, add_old_name, add_run, add_trust, complete, path, whole
from sfactory.cli.exit_line import print_exit_line
from sfactory.errors import CommandError, Exit

if TYPE_CHECKING:
    from sfactory.play.evaluate import EvalResult, MultiTaskEvalResult
    from sfactory.play.match import MatchResult

DESCRIPTION = """\
Play whole episodes with a policy in separate environments, or a match against another policy. Only
videos are written, and the TensorBoard of the run shows them. The settings of the run apply;
--env.settings.KEY, --env.wrappers, --env.wrapper-settings and --env.protocol change the environment,
and the result says how.
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "eval",
        help="play whole episodes with a checkpoint",
        usage="sfactory eval runs/NAME [--against OPPONENT] [options] [--env.settings.KEY VALUE]",
        description=DESCRIPTION,
        epilog="During training: the setting eval.every of sfactory train; the curves are eval/*.",
        pages="docs/quick-tour.md; matches: docs/matches.md",
    )
    parser.refusal, parser.accepted = "eval plays with the settings of the run", "env."
    add_run(parser, help="folder of a run or of a checkpoint")
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        default="newest",
        help="newest, best (highest training return), or the trained steps of one (newest)",
    )
    text = "the same as --checkpoint best"
    parser.add_argument("--best", dest="checkpoint", action="store_const", const="best", help=text)
    text = "a match: a run, a checkpoint, RUN/pool/NAME, or random plays all agents but one"
    complete(parser.add_argument("--against", metavar="OPPONENT", help=text), "run")
    parser.add_argument("--episodes", metavar="N", type=whole(1), help="episodes to play (100; with --against 500)")
    parser.add_argument("--greedy", action="store_true", help="the most probable action instead of a sampled one")
    parser.add_argument(
        "--max-steps",
        metavar="N",
        type=whole(1),
        default=0,
        help="cut an episode here and count its return so far (its own limit, or 10000)",
    )
    text = "environments that play at the same time (default: 32, but not more than the run has for training)"
    envs = parser.add_argument("--num-envs", metavar="N", type=whole(1), default=0, help=text)
    add_old_name(parser, "--envs", envs)
    parser.add_argument("--seed", metavar="N", type=whole(0), default=0, help="seed of environments and sampling (0)")
    video = parser.add_argument(
        "--video",
        metavar="OUT.mp4",
        type=path,
        help="record the first episode of environment 0",
    )
    complete(video, "file")
    text = "record its first N episodes: OUT-1.mp4, OUT-2.mp4, ... (1)"
    add_old_name(
        parser, "--video-games", parser.add_argument("--video-episodes", metavar="N", type=whole(1), help=text)
    )
    add_trust(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate, or play a match, and print the statistics."""
    from sfactory.monitor.format import printable

    if options.video_episodes and options.video is None:
        raise CommandError(Exit.USAGE, "--video-episodes is the number of episodes to record; add --video FILE.mp4")
    result = _evaluated(options) if options.against is None else _matched(options)
    print(json.dumps(result.as_dict()) if options.json else printable(result.report()))
    if options.video is not None:
        _show_videos(options.word, result)
    return print_exit_line(Exit.FINISHED, "evaluated", result.sentence)


def _evaluated(options: argparse.Namespace) -> EvalResult | MultiTaskEvalResult:
    from sfactory import api

    video = {"video": options.video, "video_episodes": options.video_episodes or 1}
    return api.evaluate_layer(
        options.word, options.settings, options.checkpoint, options.trust, **_chosen(options), **video
    )


def _show_videos(word: str, result: Any) -> None:
    """Add the videos to the TensorBoard folder of the run; a problem there is a note, the videos exist."""
    from pathlib import Path

    from sfactory.play.video_event import show_videos
    from sfactory.run.folder import run_of

    results = getattr(result, "tasks", (result,))
    files = [Path(video.file) for one in results for video in one.videos]
    try:
        show_videos(run_of(Path(word)), files, results[0].env_steps)
    except (OSError, ValueError) as error:
        print(f"sfactory: note: TensorBoard does not show the video: {error}", file=sys.stderr)


def _matched(options: argparse.Namespace) -> MatchResult:
    from sfactory import api

    if options.video is not None:
        raise CommandError(Exit.USAGE, "--video: a match is not recorded; leave --video or --against out")
    return api.match_layer(
        options.word, options.against, options.settings, options.checkpoint, options.trust, **_chosen(options)
    )


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """What is played in both cases; the number of episodes only if it was given."""
    chosen = {name: getattr(options, name) for name in ("greedy", "max_steps", "seed", "num_envs")}
    return chosen if options.episodes is None else {**chosen, "episodes": options.episodes}
