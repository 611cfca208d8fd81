"""`sfactory completion`: print a completion script for a shell, made by shtab from the parser."""

from __future__ import annotations

import argparse
import re

from sfactory.cli.args import CommandParser, Commands, Parser, add_word
from sfactory.errors import CommandError, Exit

SHELLS = ("bash", "zsh", "fish")
INSTALL = """\
Print a script that completes commands, presets, run folders, settings and their choices. To have it
in every shell, add the line to the file on its right:

  source <(sfactory completion bash)       ~/.bashrc
  eval "$(sfactory completion zsh)"        ~/.zshrc, below compinit
  sfactory completion fish | source        ~/.config/fish/config.fish
"""
SEPARATE_EQUALS = """\

# bash splits --name=value into three words: complete as if they were --name value
_sfactory() {
  local -a kept=()
  local i
  for ((i = 0; i <= COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} != = ]]; then kept+=("${COMP_WORDS[i]}"); elif ((i == COMP_CWORD)); then kept+=(""); fi
  done
  COMP_WORDS=("${kept[@]}") COMP_CWORD=$((${#kept[@]} - 1))
  _shtab_sfactory
  if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -F _sfactory sfactory
"""


def add_parser(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes all of this in a shell",
        usage="sfactory completion bash|zsh|fish",
        description=INSTALL,
        pages="docs/installing.md",
    )
    parser.refusal = "completion takes no settings"
    add_word(parser, " or ".join(SHELLS), "shell to print the script for", "shell")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    from sfactory.errors import did_you_mean

    shell = options.word
    if shell not in SHELLS:
        message = f"{shell}: there are scripts for {', '.join(SHELLS)}{did_you_mean(shell, SHELLS)}"
        raise CommandError(Exit.USAGE, message)
    print(script(shell, options.parser), end="")
    return 0


def script(shell: str, parser: Parser) -> str:
    """The completion script of one shell. `parser` gets the settings of every command that takes them."""
    import shtab

    from sfactory.config.flags import add_settings

    for command in command_parsers(parser).values():
        if not command.refusal:
            add_settings(command, keys=False)
    preamble, completers = _dynamic(shell)
    text = shtab.complete(parser, shell, preamble=preamble, choice_functions=completers)
    if shell == "bash":
        return text + SEPARATE_EQUALS
    if shell == "zsh":  # --name=value too: shtab declares --name value only
        text = re.sub(r'^(  "--[\w.-]+)(\[.*\]:)', r"\1=\2", text, flags=re.MULTILINE)
    return text + "\n"


def command_parsers(parser: Parser) -> dict[str, CommandParser]:
    """Command -> its parser."""
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def _dynamic(shell: str) -> tuple[str, dict[str, str]]:
    """Shell functions for run folders, and what completes each kind of positional (see `args.complete`)."""
    from sfactory.config.presets import presets
    from sfactory.families import families

    words = {
        "target": " ".join([preset.name for preset in presets()] + [f"{family}/" for family in families()]),
        "family": " ".join(families()),
        "shell": " ".join(SHELLS),
    }
    if shell == "zsh":
        runs = "_sfactory_runs() {\n  local -a folders=(runs/*/config.toml(N:h))\n  compadd -a folders\n}"
        return runs, {**{kind: f"({text})" for kind, text in words.items()}, "run": "_sfactory_runs"}
    if shell == "fish":
        runs = "function _sfactory_runs\n  for file in runs/*/config.toml\n    dirname $file\n  end\nend"
        return runs, {**words, "run": "(_sfactory_runs)"}
    functions = [
        "_sfactory_run() {\n  local file\n  for file in runs/*/config.toml; do\n"
        '    file=${file%/config.toml}\n    if [[ -d $file && $file == "$1"* ]]; then echo "$file"; fi\n  done\n}'
    ]
    functions += [f'_sfactory_{kind}() {{\n  compgen -W "{text}" -- "$1"\n}}' for kind, text in words.items()]
    return "\n".join(functions), {kind: f"_sfactory_{kind}" for kind in ("run", *words)}
