"""`sfactory completion`: scripts for bash, zsh and fish, made from the same tables as the command line itself.

What a verb takes is read from its help, which names every option and whose first line says what stands behind the verb;
settings and their choices come from the types of `sfactory.config`, targets from the presets and families installed.
Run folders are looked for when the key is pressed.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sfactory.config.bounds import ENCODERS
from sfactory.config.parsing import SETTINGS, field_types, flag_name
from sfactory.config.presets import families, presets

SHELLS = ("bash", "zsh", "fish")
FILES = ("--config", "-o", "--out", "--video", "--html")
FOLDERS = ("--run.dir", "--run.init-from", "--dir")
_OPTION = re.compile(r"(?<![\w.`-])(--[a-z][a-z-]*(?:\.[a-z][a-z-]*)?|-[a-z])(?=[\s,=`)]|$)( [A-Z]\w*)?", re.MULTILINE)


@dataclass(frozen=True)
class Verb:
    """What may stand behind one verb."""

    name: str
    options: tuple[str, ...]
    words: tuple[str, ...]
    """Positionals by name."""
    runs: bool
    """Run folders too."""


@dataclass(frozen=True)
class Tables:
    """Everything a script holds."""

    verbs: tuple[Verb, ...]
    choices: dict[str, tuple[str, ...]]
    """Option -> its values."""
    valued: tuple[str, ...]
    """Options that take a value nobody can guess."""


def tables(help_of: Mapping[str, str]) -> Tables:
    """From the help texts of the verbs."""
    types = field_types()
    settings = tuple(f"--{flag_name(name)}" for name in types if name != SETTINGS)
    choices = {
        f"--{flag_name(n)}": typing.get_args(t) for n, t in types.items() if typing.get_origin(t) is typing.Literal
    }
    choices |= {"--model.encoder": ENCODERS, "--run.device": ("auto", "cpu", "cuda")}
    valued = {f"--{flag_name(name)}" for name, kind in types.items() if kind is not bool}
    verbs = []
    for name, text in help_of.items():
        found = {option: metavar for option, metavar in _OPTION.findall(text) if option != "--section.field"}
        valued |= {option for option, metavar in found.items() if metavar and option not in settings}
        options = [*found, "--help", *(settings if "--section.field" in text else ())]
        words, runs = _positionals(text.partition("\n")[0])
        verbs.append(Verb(name, tuple(dict.fromkeys(options)), words, runs))
    guessed = {*choices, *FILES, *FOLDERS}
    return Tables(tuple(verbs), choices, tuple(sorted(valued - guessed)))


def _positionals(usage: str) -> tuple[tuple[str, ...], bool]:
    """Words behind a verb, and whether run folders are among them, from the first line of its help."""
    words: list[str] = []
    if "TARGET" in usage:
        words += [preset.name for preset in presets()] + [f"{family}/" for family in families()]
    if "FAMILY" in usage:
        words += families()
    if "|".join(SHELLS) in usage:
        words += SHELLS
    return tuple(words), bool(re.search(r"runs/|\bRUNS?\b", usage))


def script(shell: str, help_of: Mapping[str, str]) -> str:
    """The script of one shell. Raises KeyError for another one."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](tables(help_of))


def _bash(t: Tables) -> str:
    return f"""\
# sfactory in bash:  source <(sfactory completion bash)
_sfactory() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words= folder
  COMPREPLY=()
  if [[ $cur == = ]]; then cur=; elif [[ $prev == = ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  if [[ $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W "{_verbs(t)}" -- "$cur")); return
  fi
  case $prev in
{_cases(t, lambda values: f'COMPREPLY=($(compgen -W "{values}" -- "$cur")); return')}
    {"|".join(FILES)}) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur")); return ;;
    {"|".join(FOLDERS)}) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -d -- "$cur")); return ;;
    {"|".join(t.valued)}) return ;;
  esac
  case ${{COMP_WORDS[1]}} in
{"".join(f'    {v.name}) words="{" ".join((*v.words, *v.options))}" ;;' + chr(10) for v in t.verbs)}\
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  case ${{COMP_WORDS[1]}} in
    {_with_runs(t)})
      for folder in runs/*/config.toml; do
        folder=${{folder%/config.toml}}
        if [[ -d $folder && $folder == "$cur"* ]]; then COMPREPLY+=("$folder"); fi
      done ;;
  esac
  if [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == */ ]]; then compopt -o nospace 2>/dev/null; fi
}}
complete -F _sfactory sfactory
"""


def _zsh(t: Tables) -> str:
    return f"""\
#compdef sfactory
# sfactory in zsh:  source <(sfactory completion zsh), or this file as _sfactory in a folder of $fpath
_sfactory() {{
  local cur=${{words[CURRENT]}} prev=${{words[CURRENT-1]}}
  local -a folders
  if [[ $cur == --*=* ]]; then prev=${{cur%%=*}}; compset -P '*='; fi
  if (( CURRENT == 2 )); then compadd -- {_verbs(t)}; return; fi
  case $prev in
{_cases(t, lambda values: f"compadd -- {values}; return")}
    {"|".join(FILES)}) _files; return ;;
    {"|".join(FOLDERS)}) _files -/; return ;;
    {"|".join(t.valued)}) return ;;
  esac
  case ${{words[2]}} in
{"".join(f"    {v.name}) compadd -- {' '.join((*v.words, *v.options))} ;;" + chr(10) for v in t.verbs)}\
  esac
  case ${{words[2]}} in
    {_with_runs(t)}) folders=(runs/*/config.toml(N:h)); compadd -a folders ;;
  esac
}}
if [[ ${{funcstack[1]}} == _sfactory ]]; then _sfactory "$@"; else compdef _sfactory sfactory; fi
"""


def _fish(t: Tables) -> str:
    lines = [
        "# sfactory in fish:  sfactory completion fish | source",
        "function __sfactory_runs; for f in runs/*/config.toml; dirname $f; end; end",
        "complete -c sfactory -f",
        f"complete -c sfactory -n __fish_use_subcommand -a '{_verbs(t)}'",
    ]
    for verb in t.verbs:
        here = f"complete -c sfactory -n '__fish_seen_subcommand_from {verb.name}'"
        if verb.words:
            lines.append(f"{here} -a '{' '.join(verb.words)}'")
        if verb.runs:
            lines.append(f"{here} -a '(__sfactory_runs)'")
        for option in verb.options:
            name = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            lines.append(f"{here} {name}{_fish_value(t, option)}")
    return "\n".join(lines) + "\n"


def _fish_value(t: Tables, option: str) -> str:
    if option in t.choices:
        return f" -xa '{' '.join(t.choices[option])}'"
    if option in FILES:
        return " -rF"
    if option in FOLDERS:
        return " -xa '(__fish_complete_directories)'"
    return " -x" if option in t.valued else ""


def _verbs(t: Tables) -> str:
    return " ".join([*(verb.name for verb in t.verbs), "--help", "--version"])


def _with_runs(t: Tables) -> str:
    return "|".join(verb.name for verb in t.verbs if verb.runs)


def _cases(t: Tables, act: Callable[[str], str]) -> str:
    return "\n".join(f"    {option}) {act(' '.join(values))} ;;" for option, values in t.choices.items())

