"""`sfactory train`: start a new run."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sfactory.cli.args import DOCUMENTATION, CommandParser, Commands, add_config, add_target, config_of
from sfactory.cli.exit_line import print_exit_line
from sfactory.cli.output import stdout_to_stderr
from sfactory.errors import CommandError, Exit, resume_command
from sfactory.run.folder import is_run

if TYPE_CHECKING:
    from sfactory.config import Config
    from sfactory.run.outcome import Outcome

SETTINGS = """\
the settings used most, some with a short form:
  --name NAME                   folder runs/NAME (runs/<preset>_s<seed>_<date-time>); or --run.dir DIR
  --steps N, --stop.env-steps   trained steps (of agents, if there are several); 10M is a number
  --seconds S, --stop.seconds; --stop.target-return R
  --lr X, --optim.lr            learning rate
  --seed N, --run.seed (1);  --device D, --run.device: auto, cpu, cuda
  --samplers N, --sampling.num-samplers      processes that step environments
  --envs N, --sampling.envs-per-group        environments of a group, stepped together
  --run.mode lockstep           deterministic;  --run.init-from RUN: start from its weights
  --eval.every N                evaluate every N steps in a process of its own
  --env.settings.KEY VALUE      setting of the environment itself

  sfactory train minatar/breakout --lr 1e-3 --steps 50k --seed 3
  sfactory train atari/pong,atari/boxing --config my.toml     one policy for several tasks
"""


def add_parser(commands: Commands) -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "train",
        help="start a run",
        usage="sfactory train TARGET [options] [--section.field value ...]",
        epilog=SETTINGS,
        pages=DOCUMENTATION,
    )
    add_target(parser, optional=True)
    add_run_options(parser, config_of)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the target, build the configuration, train."""
    target = options.word
    if is_run(Path(target)):
        raise CommandError(Exit.USAGE, f"{target} is a run; continue it: {resume_command(Path(target))}")
    config = config_of(options)
    if options.print_config:
        return print_config(config)
    from sfactory import api

    with stdout_to_stderr():
        outcome = api.train_config(config, target)
    return report(outcome, config, options.json)


# -- shared with resume --------------------------------------------------------------------------------------


def add_run_options(parser: CommandParser, config_of: Callable[[argparse.Namespace], Config]) -> None:
    """Options of train and resume. config_of: the settings that a command line of the command means."""
    add_config(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings as TOML and exit")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    text = "list every setting, with the values of TARGET, and exit"
    parser.add_argument("--help-all", action="store_true", help=text)
    parser.help_all = lambda options: print_settings(parser, config_of(options) if options.word else None, options.word)


def print_settings(parser: CommandParser, config: Config | None, word: str) -> None:
    """Print every setting with its meaning and, as default, its value in `config`."""
    from sfactory.cli.args import Parser
    from sfactory.config.flags import add_settings

    of = f"Defaults are the values of {word}, with the files and flags of this command." if word else None
    every = Parser(prog=parser.prog, usage=parser.usage, add_help=False, description=of)
    add_settings(every, config=config)
    print(every.format_help(), end="")


def print_config(config: Config) -> int:
    """Print the resolved settings as TOML."""
    from sfactory.config.toml_file import to_toml

    print(to_toml(config), end="")
    return 0


def report(outcome: Outcome, config: Config, as_json: bool) -> int:
    """Print what was reached and the commands that come next, then the exit line."""
    code = Exit(outcome.code)
    run_dir = Path(outcome.run_dir)
    if outcome.rank and code is Exit.FINISHED:  # rank 0 reports it
        return int(code)
    if as_json:
        print(json.dumps(vars(outcome)))
    elif code is Exit.FINISHED:
        print(f"\ntrained {_steps(outcome)} of {config.env.name}; training return {_score(outcome)}")
        print(f"  run         {run_dir}")
        print(f"  evaluate    sfactory eval {shlex.quote(str(run_dir))}")
        if line := _better(run_dir, outcome):
            print(f"  best        {line}")
        print(f"  curves      tensorboard --logdir {shlex.quote(str(run_dir))}")
    resume = resume_command(run_dir, outcome.resume_settings)
    word = f"rank {outcome.rank}: {code.outcome}" if outcome.rank else code.outcome
    return print_exit_line(code, word, outcome.sentence, outcome.checkpoint, outcome.env_steps, resume)


def _steps(outcome: Outcome) -> str:
    """What was trained."""
    if outcome.environment_steps is None:
        return f"{outcome.env_steps:,} steps"
    return f"{outcome.env_steps:,} agent steps ({outcome.environment_steps:,} env steps)"


def _better(run_dir: Path, outcome: Outcome) -> str:
    """What an earlier checkpoint reached, and how to play it, if it was better than the end; else empty."""
    from sfactory.run import checkpoint

    path = checkpoint.best(run_dir)
    value = None if path is None else checkpoint.settled_return(path)
    if path is None or value is None or outcome.training_return is None or value <= outcome.training_return:
        return ""
    return f"{value:.2f} at {int(path.name):,} steps; sfactory eval {shlex.quote(str(run_dir))} --best"


def _score(outcome: Outcome) -> str:
    """The training return, and what it is the mean of."""
    if outcome.training_return is None:
        return f"unknown ({outcome.episodes} complete episodes)"
    return f"{outcome.training_return:.2f} (mean of the last {outcome.episodes} episodes)"
