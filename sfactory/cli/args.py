"""The argument parser of every command, and options that several commands share."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from sfactory.errors import CommandError, Exit, SettingError, SettingNote, did_you_mean

if TYPE_CHECKING:
    from sfactory.config import Config
    from sfactory.config.parsing import ConfigLayer
    from sfactory.population.commands import Launcher, Resources

DOCUMENTATION = "docs/README.md; every setting: docs/configuration.md, or --help-all"
"""The first pages to read, as the help names them."""

Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of the same width on every terminal, with texts as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=100)

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):  # one row per command, without a row for their list
            return self._join_parts([self._format_action(command) for command in action._get_subactions()])
        return super()._format_action(action)

    def _iter_indented_subactions(self, action: argparse.Action) -> Generator[argparse.Action, None, None]:
        if isinstance(action, argparse._SubParsersAction):
            yield from action._get_subactions()


class Parser(argparse.ArgumentParser):
    """ArgumentParser without abbreviations, whose errors are CommandErrors of one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        raise CommandError(Exit.USAGE, message.removeprefix("argument "))

    def own_options(self) -> dict[str, bool]:
        """Names of the command's own options, old ones too -> whether one takes a value."""
        return {name: action.nargs != 0 for name, action in self._option_string_actions.items()}

    def current_options(self) -> list[str]:
        """Names of the command's own options without old names, which no help, completion or suggestion has."""
        return [name for name, action in self._option_string_actions.items() if not isinstance(action, OldName)]


class CommandParser(Parser):
    """Parser of one command: settings are read first (`sfactory.config.flags`), then its own options.

    Options and positionals may come in any order. The settings are in the result as `settings`, a ConfigLayer.
    """

    refusal = ""
    """Why the command takes no settings, or only some; empty if it takes all."""
    accepted = ""
    """Beginning of the settings that the command takes in spite of `refusal`; empty: none."""
    help_all: Callable[[argparse.Namespace], None] | None = None
    """Prints every setting for `--help-all`, of a command that has it; the options have the word, or an empty one."""

    def __init__(self, *, pages: str, **options: Any) -> None:
        """pages: the documentation of the command, its page first, as the last line of the help names it."""
        super().__init__(**options)
        self.pages = pages

    def format_help(self) -> str:
        return f"{super().format_help()}Documentation: {self.pages}\n"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        from sfactory.config.flags import split_flags
        from sfactory.config.parsing import flag_name

        if "--help" in args or "-h" in args:
            self.print_help()
            self.exit()
        try:
            settings, own, positionals = split_flags(args, self.own_options())
        except SettingError as error:
            raise self._without_settings(error) from None
        refused = [name for name in settings if not (self.accepted and name.startswith(self.accepted))]
        if refused and self.refusal:
            raise CommandError(Exit.USAGE, f"{flag_name(refused[0])}: {self.refusal}; see --help")
        if positionals and not self._get_positional_actions():
            raise CommandError(Exit.USAGE, f"{positionals[0]}: this command takes no arguments")
        if "--help-all" in own and self.help_all is not None and not positionals:
            self.help_all(argparse.Namespace(word=""))
            self.exit()
        found, rest = super().parse_known_args([*own, *positionals], namespace)
        found.settings = settings
        if self.help_all is not None and found.help_all:
            self.help_all(found)
            self.exit()
        return found, rest

    def _without_settings(self, error: SettingError) -> ValueError:
        """The same error; of a command that takes no such settings, one that speaks of its options."""
        name, _, rest = str(error).partition(": ")
        if not self.refusal or "." in name or not rest.startswith("no such setting"):
            return error
        near = did_you_mean(name, [option.lstrip("-") for option in self.current_options()], 0.8, 0.85)
        hint = self._own_option(name) or near.replace("mean ", "mean --") or f"; {self.refusal}"
        return CommandError(Exit.USAGE, f"--{name}: no such option{hint}; see --help")

    def _own_option(self, name: str) -> str:
        """The option of this command that another program has under this name, as `; here --greedy`; else empty."""
        from sfactory.config.known_names import answer

        found = re.findall(r"(?:eval\.|--)([a-z][a-z-]*)", answer(name))
        return next((f"; here --{word}" for word in found if f"--{word}" in self.current_options()), "")


class OneWord(argparse.Action):
    """Accept exactly one positional (none too, if the default is a string); CommandError names what came instead."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        words = values if isinstance(values, list) else []
        if not words and isinstance(self.default, str):
            return
        if len(words) != 1:
            hint = next((_as_setting(word) for word in words if "=" in word), "")
            got = f"expected one {self.metavar}, got {' '.join(words) or 'none'}"
            raise CommandError(Exit.USAGE, f"{got}; settings are written --section.field value{hint}")
        setattr(namespace, self.dest, os.path.expanduser(words[0]))


class OldName(argparse.Action):
    """An option under its old name: it works, with a note, as old names of settings do."""

    def __init__(self, *, current: str, **options: Any) -> None:
        super().__init__(**options)
        self.current = current

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        warnings.warn(f"{option_string} is now {self.current} (the old name still works)", SettingNote, stacklevel=2)
        setattr(namespace, self.dest, values)


def add_old_name(parser: CommandParser, old: str, action: argparse.Action) -> None:
    """Accept an option with one value under its old name too."""
    current = max(action.option_strings, key=len)
    parser.add_argument(
        old, action=OldName, current=current, dest=action.dest, metavar=action.metavar, type=action.type or str,
        default=argparse.SUPPRESS, help=argparse.SUPPRESS,
    )  # fmt: skip


def _as_setting(word: str) -> str:
    """Suggest the flag for a setting written as `lr=3`; empty if there is no setting of a similar name."""
    from sfactory.config.known_names import setting_of
    from sfactory.config.parsing import field_types, flag_name

    name, _, value = word.partition("=")
    if setting := setting_of(name):
        return f"; did you mean --{setting} {value}?"
    hint = did_you_mean(flag_name(name), map(flag_name, field_types()), 0.8, 0.85)
    return f"{hint.removesuffix('?').replace('mean ', 'mean --')} {value}?" if hint else ""


# -- options that several commands share ---------------------------------------------------------------------


def add_word(parser: CommandParser, metavar: str, help: str, completes: str, optional: bool = False) -> None:
    """One positional, as `word`. completes: what a shell offers for it (see `complete`)."""
    default = "" if optional else None
    action = parser.add_argument("word", nargs="*", action=OneWord, metavar=metavar, help=help, default=default)
    complete(action, completes)


def add_target(parser: CommandParser, optional: bool = False) -> None:
    """The positional TARGET: a preset, FAMILY/ID, or a class or function of the user's own."""
    add_word(parser, "TARGET", "a preset, FAMILY/ID, or my_file:MyEnv", "target", optional)


def add_run(parser: CommandParser, metavar: str = "runs/NAME", help: str = "folder of the run") -> None:
    """The positional runs/NAME. Settings are refused unless the command allows them afterwards."""
    add_word(parser, metavar, help, "run")


def add_config(parser: CommandParser) -> None:
    """--config FILE, repeatable."""
    text = "TOML with [sections], stronger than the preset; repeatable"
    complete(parser.add_argument("--config", metavar="FILE", type=path, action="append", default=[], help=text), "file")


def add_dir(parser: CommandParser, help: str) -> None:
    """--dir, and its short form --name."""
    complete(parser.add_argument("--dir", metavar="DIR", type=path, help=help), "directory")
    text = "the same as --dir runs/NAME"
    parser.add_argument("--name", dest="dir", metavar="NAME", type=named_folder, help=text)


def add_json(parser: CommandParser, help: str = "print the result as one JSON object on stdout") -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help=help)


def add_launcher(parser: CommandParser, jobs: str = "runs at the same time") -> None:
    """--jobs, --launcher and the options that belong to it."""
    parser.add_argument("--jobs", metavar="N", type=whole(1), default=1, help=f"{jobs} (%(default)s)")
    choices = ("local", "slurm", "ray")
    text = "where runs are started: local, slurm or ray (%(default)s)"
    parser.add_argument("--launcher", metavar="WHERE", choices=choices, default=choices[0], help=text)
    text = "cores of each run (those of this machine, divided by --jobs)"
    parser.add_argument("--cores", metavar="N", type=whole(1), help=text)
    text = "GPUs that each run asks SLURM or Ray for (%(default)s)"
    parser.add_argument("--gpus", metavar="N", type=whole(0), default=0, help=text)
    text = "option of submitit, as partition=gpu; repeatable"
    parser.add_argument("--slurm", metavar="NAME=VALUE", action="append", default=[], help=text)


def add_trust(parser: CommandParser) -> None:
    """--trust."""
    text = "run the code that the settings of the run name, if it is another user's"
    parser.add_argument("--trust", action="store_true", help=text)


def complete(action: argparse.Action, what: str) -> None:
    """Let shells complete the value of `action`: "file", "directory", "target", "run" or "family"."""
    setattr(action, "complete", what)  # noqa: B010  (an attribute that shtab reads and argparse does not declare)


def path(text: str) -> Path:
    """Type of an option: a file or folder; `~` is the home folder, which shells do not replace in --option=~/x."""
    return Path(os.path.expanduser(text))


def named_folder(text: str) -> Path:
    """Type of an option: the folder runs/NAME, by its name."""
    from sfactory.config.short_forms import folder_of
    from sfactory.errors import SettingError

    try:
        return Path(folder_of(text))
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("name: ")) from None


def whole(minimum: int) -> Callable[[str], int]:
    """Type of an option: a whole number of at least `minimum`; 10M and 50k are accepted."""

    def convert(text: str) -> int:
        value = decimal(minimum)(text)
        if value != int(value):
            raise argparse.ArgumentTypeError(f"{text} is not a whole number")
        return int(value)

    return convert


def decimal(minimum: float) -> Callable[[str], float]:
    """Type of an option: a number of at least `minimum`."""

    def convert(text: str) -> float:
        from sfactory.config.parsing import number
        from sfactory.errors import SettingError

        try:
            value = float(number(text))
        except SettingError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum:g}, got {text}")
        return value

    return convert


# -- steps of several commands -------------------------------------------------------------------------------


def config_of(options: argparse.Namespace) -> Config:
    """The checked configuration of `TARGET --config FILE ... --section.field value ...`."""
    from sfactory.config import parsing, presets

    layers = presets.target_layers(options.word, getattr(options, "config", []))
    return parsing.build(*layers, settings_of(options))


def refuse_fixed(settings: ConfigLayer, fixed: Mapping[str, str], command: str) -> None:
    """CommandError for a setting on the command line that the command sets itself: it would be ignored.

    fixed: setting, or a section with its dot -> what to do or to know instead.
    """
    from sfactory.config.parsing import flag_name
    from sfactory.config.renamed import current_name

    for typed in settings:
        name = current_name(typed)
        for prefix, instead in fixed.items():
            if name == prefix or (prefix.endswith(".") and name.startswith(prefix)):
                raise CommandError(Exit.USAGE, f"{flag_name(typed)}: {command} sets it itself; {instead}")


def settings_of(options: argparse.Namespace) -> ConfigLayer:
    """The settings on the command line; --quiet is log.quiet."""
    from sfactory.config.parsing import RawValue

    layer: ConfigLayer = options.settings
    return {**layer, "log.quiet": RawValue("true")} if getattr(options, "quiet", False) else layer


@contextlib.contextmanager
def opened_launcher(options: argparse.Namespace, folder: Path, num_runs: int) -> Iterator[tuple[Launcher, Resources]]:
    """The launcher of `add_launcher`, and what each run may use. folder: of all runs, for files of the launcher."""
    from sfactory.device.machine import cores
    from sfactory.population.commands import Resources
    from sfactory.population.launchers import LAUNCHERS

    parallel = min(options.jobs, num_runs)
    resources = Resources(options.cores or max(1, cores() // parallel), options.gpus)
    launcher = LAUNCHERS[options.launcher](folder, parallel, resources, launcher_options(options))
    try:
        yield launcher, resources
    finally:
        launcher.close()


def launcher_options(options: argparse.Namespace) -> dict[str, str]:
    """The options of the launcher by name; an error if the launcher cannot be used, before anything is written."""
    from sfactory.population.launchers import require_launcher

    return require_launcher(options.launcher, options.slurm)


def progress(line: str) -> None:
    """Print one line of progress on stderr, so that stdout holds results only."""
    print(line, file=sys.stderr, flush=True)


def quiet(line: str) -> None:
    """Discard a line of progress."""
