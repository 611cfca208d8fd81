"""The command `sfactory`: parse the command line, run the command, report how it ended.

Nothing heavy is imported before a command needs it: spawned workers import the main module again, and
`import torch` would cost every sampler 1.5 s and a few hundred MB.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sfactory._version import __version__
from sfactory.cli import (
    bench,
    check_env,
    compare,
    completion,
    doctor,
    envs,
    evaluate,
    export,
    info,
    new,
    pbt,
    presets,
    profile,
    report,
    resume,
    sweep,
    train,
    verify_resume,
    watch,
)
from sfactory.cli.args import DOCUMENTATION, CommandParser, Parser
from sfactory.cli.exit_line import exit_of, print_exit_line
from sfactory.cli.output import flush_stdout, open_streams, silence_stdout_at_exit
from sfactory.errors import CommandError, EnvError, Exit, SettingNote, resume_command
from sfactory.run.folder import is_run

COMMANDS = {
    "train": train,
    "resume": resume,
    "eval": evaluate,
    "bench": bench,
    "profile": profile,
    "watch": watch,
    "export": export,
    "info": info,
    "compare": compare,
    "report": report,
    "sweep": sweep,
    "pbt": pbt,
    "verify-resume": verify_resume,
    "new": new,
    "check-env": check_env,
    "doctor": doctor,
    "presets": presets,
    "envs": envs,
    "completion": completion,
}

_VIDEO = "sfactory eval {run} --video out.mp4"
_LISTS = "sfactory presets, or sfactory envs"
ELSEWHERE = {
    **dict.fromkeys(("enjoy", "play", "render", "record", "video", "visualize"), _VIDEO),
    **dict.fromkeys(("test", "evaluate", "evaluation", "score"), "sfactory eval {run}"),
    **dict.fromkeys(("run", "learn", "fit", "start"), "sfactory train {target}"),
    **dict.fromkeys(("continue", "restart", "load"), "sfactory resume {run}"),
    **dict.fromkeys(("benchmark", "speed"), "sfactory bench {target}"),
    **dict.fromkeys(("tune", "optimize", "search"), "sfactory sweep {target} --grid optim.lr=1e-4,1e-3"),
    **dict.fromkeys(("list", "ls"), _LISTS),
    **dict.fromkeys(("monitor", "dashboard", "status", "show"), "sfactory watch {run}"),
    **dict.fromkeys(("plot", "curves"), "sfactory compare {run} -o plot.png, or sfactory report {run}"),
    "tensorboard": "tensorboard --logdir {run}",
    **dict.fromkeys(("config", "settings"), "sfactory train {target} --print-config"),
    **dict.fromkeys(("init", "create", "make", "template"), "sfactory new my_env.py:MyEnv"),
    "save": "sfactory export {run} -o policy.onnx",
    "check": "sfactory check-env {target}, or sfactory doctor",
    "version": "sfactory --version",
    **dict.fromkeys(("serve", "deploy", "predict"), "sfactory export {run} -o policy.onnx"),
}
"""First words that other programs have -> the command here."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the console script. Exit through sys.exit; the last line on stderr reports how it ended."""
    args = list(sys.argv[1:] if argv is None else argv)
    console = None
    if argv is None:  # this process is the command's own
        use_utf8()
        console = open_streams()
    try:
        if (folder := current_folder()) not in sys.path:
            sys.path.append(folder)  # encoders of the user's own; last, so that nothing installed is hidden
        with warnings.catch_warnings():
            warnings.simplefilter("always", SettingNote)
            warnings.showwarning = _show_warning(warnings.showwarning)
            code = dispatch(args)
        flush_stdout()
        silence_stdout_at_exit()
    except KeyboardInterrupt:
        code = print_exit_line(Exit.INTERRUPTED, Exit.INTERRUPTED.outcome, "stopped before anything was trained")
    except Exception as error:
        exit_code, sentence = exit_of(error)
        code = print_exit_line(exit_code, exit_code.outcome, sentence)
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if console is not None and not all(thread.daemon for thread in others):
        flush_stdout()
        console.close()
        os._exit(code)  # an environment's thread would keep the command from ending
    sys.exit(code)


def use_utf8() -> None:
    """Start this process again with UTF-8 for files and names, where the locale has another encoding.

    Only the interpreter's start can set this, also for packages that open files without naming an encoding.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable and not sys.flags.utf8_mode:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def current_folder() -> str:
    """The current folder. CommandError (exit 2) if it was removed or cannot be entered."""
    try:
        return os.getcwd()
    except OSError as error:
        name = os.environ.get("PWD", "the current folder")
        raise CommandError(Exit.USAGE, f"{name}: {error.strerror}; change to a folder that exists (cd)") from error


def dispatch(args: Sequence[str]) -> int:
    """Parse and run one command; returns its exit code."""
    options = parse(args)
    try:
        return int(options.run(options))
    except SystemExit as error:  # raised by an environment that runs in this process, as in bench
        raise EnvError(f"an environment ended the process: SystemExit: {error.code}", fault=True) from error


def parse(args: Sequence[str]) -> argparse.Namespace:
    """Parse a command line without running it: `run`, `settings` (a ConfigLayer), and the command's own options.

    Raises:
        CommandError, SettingError: unknown command, option or setting; missing or wrong value.
        SystemExit: --help and --version, after printing.
    """
    parser = build_parser()
    words = list(args) or ["--help"]
    if words[0] == "help":
        words = [*words[1:2], "--help"]
    command = words[0]
    if command in ELSEWHERE:
        raise CommandError(Exit.USAGE, f"{command}: no such command; here {_elsewhere(words)}")
    if command not in COMMANDS and command not in parser.own_options():
        raise CommandError(Exit.USAGE, f"{command}: no such command{_meant(words)}; there are {', '.join(COMMANDS)}")
    options = parser.parse_args(words)
    options.parser = parser
    return options


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="sfactory",
        usage="sfactory COMMAND [options]",
        description="Train reinforcement learning policies on one machine.",
        epilog="sfactory help COMMAND shows its options. To begin: sfactory train minatar/breakout\n"
        f"Documentation: {DOCUMENTATION}",
    )
    parser.add_argument("-V", "--version", action="version", version=f"sfactory {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog="sfactory", required=True, parser_class=CommandParser
    )
    for command in COMMANDS.values():
        command.add_parser(commands)
    return parser


def _elsewhere(words: Sequence[str]) -> str:
    """The command to type instead, with the run or target that was typed; of a target no run."""
    from sfactory.config.presets import presets

    typed = words[1] if len(words) > 1 and not words[1].startswith("-") else ""
    run = "" if typed in {preset.name for preset in presets()} else typed
    return ELSEWHERE[words[0]].format(run=shlex.quote(run or "runs/NAME"), target=shlex.quote(typed or "TARGET"))


def _meant(words: Sequence[str]) -> str:
    """Suggest what was meant by a first word that is no command."""
    command = words[0]
    from sfactory.config.presets import is_python_target, near_target
    from sfactory.errors import did_you_mean

    if command.startswith("-"):
        if target := _target_of(words):
            return f"; did you mean sfactory train {target}?"
        return "; the command comes first, as in sfactory train TARGET --section.field value"
    if command.endswith(".py"):
        return f"; did you mean sfactory train {command}:MyEnv, with the name of the class or function?"
    if is_run(Path(command)):
        return f"; did you mean {resume_command(Path(command))}?"
    hint = did_you_mean(command, COMMANDS)
    code = is_python_target(command)
    if hint and "/" not in command and not code:
        return hint
    target = command if code else near_target(command) or (command if "/" in command else "")
    return f"; did you mean sfactory train {target}?" if target else ""


def _target_of(words: Sequence[str]) -> str:
    """The environment that a flag of another program names, as --env CartPole-v1, in our words; empty without one."""
    from sfactory.config.known_envs import first_instead_of
    from sfactory.config.known_names import names_target
    from sfactory.config.presets import presets

    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag.startswith("-") and names_target(flag):
            known, value = presets(), value or after
            return value if value in {preset.name for preset in known} else first_instead_of(value, known)
    return ""


def _show_warning(default):  # type: ignore[no-untyped-def]
    """Print notes about settings as one line, other warnings as before."""

    def show(message, category, *rest, **options):  # type: ignore[no-untyped-def]
        if issubclass(category, SettingNote):
            print(f"sfactory: note: {message}", file=sys.stderr, flush=True)
        else:
            default(message, category, *rest, **options)

    return show
