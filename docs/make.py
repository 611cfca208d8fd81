"""Generate configuration.md, metrics.md, presets.md, api.md, scores.md and parts of other pages.

    python docs/make.py             write the pages
    python docs/make.py --check     exit 1 if a page is not up to date

Sources: the docstring under each configuration field, the rules of a resume, the table of metrics, the comment at the
top of each preset, the docstrings of the exit codes and of everything public, the table of names in other programs, the
kept runs of the presets.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import re
import sys
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import sfactory.api
import sfactory.errors
from sfactory.config import Config, presets
from sfactory.config.bounds import bounds_of
from sfactory.config.flags import field_help
from sfactory.config.known_names import KNOWN, PROGRAMS, Known
from sfactory.config.parsing import field_types, flag_name
from sfactory.config.resume_rules import rule_of
from sfactory.errors import Exit
from sfactory.monitor.format import human
from sfactory.monitor.table import GROUPS, METRICS

HERE = Path(__file__).parent
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
HEADER = "<!-- made by `python docs/make.py`; edit {source} instead -->"
BEGIN, END = "<!-- made by `python docs/make.py` from {source} -->", "<!-- end -->"

CONFIGURATION_INTRO = """\
All settings of a run. On the command line a setting is `--section.field value`; dashes and underscores are the same,
and `10M`, `50k` and `2.5e-4` are numbers. Values of `env.settings` are read by [a rule of their
own](environments.md#settings-of-an-environment). `~` at the beginning of a folder is the home folder. For a mistyped
name the error message suggests the nearest one, and for a name of another program the one here. The settings used most
have [short forms](coming-from.md#short-forms), as `--lr`. In a TOML file the section is a table and the field a key.
Later sources override earlier ones:

1. the defaults below
2. the TOML file of the preset, or of its family ([presets](presets.md)); where `algorithm.name` is another one than the
   preset's, the values of that algorithm ([algorithms](algorithms.md#other-algorithms-algorithmname))
3. every `--config FILE`, in order
4. flags

`sfactory train TARGET --print-config` prints the resulting configuration without training; the run folder has the same
file as `config.toml`. Settings that contradict each other are an error before anything starts, in one line that names
them. Most defaults need no change; a preset sets those that matter for its task.

The last column says what `sfactory resume` does with a changed value: it changes silently (*free*), it is accepted with
a warning, because the curve goes on under another setting (*warns*), or it is *refused* with exit code 4, unless
`--allow NAME` accepts it. *linear*: for runs with a setting that changes step by step until `stop.env-steps`, before or
after the change: `optim.schedule linear`, `loss.entropy-final`, the epsilon of `pqn`, the penalty of `mdpo`.
"""

METRICS_INTRO = """\
All metrics, from the table in `sfactory/monitor/table.py`. The same names are the keys of a row of `metrics.jsonl`
(with `env_steps` and `seconds` of training), the tags in TensorBoard (whose step is `env_steps`), and the names in
`sfactory report`. A name that is not in the table is an error.

Returns and lengths are of complete, unclipped episodes. Other numbers are over valid steps only (reset rows are not
valid) and over the time since the previous row, unless their meaning names another time: a row is written every
`log.every-seconds` in async mode, every `log.every-updates` in lockstep mode. `<worker>` stands for a worker's name, as
`sampler-3`, `<task>` for one of several tasks, as `atari/pong`, `<name>` for a name in an environment's `info`.
`supervisor` computes its metrics from counters and messages of the other workers when a row is written.

What an update reports is averaged over the updates since the previous row. Metrics "in the last minibatch of an
update" do not cover the others: with one minibatch and one epoch that is the whole batch, with more it is a part of it,
seen with the weights before the last optimizer step.

Start with `charts/episodic_return` and `charts/SPS`; then `lag/mean` and `offpolicy/ess`, which show how stale the data
is and how much of it is effective; then `queue/free` and `stage/*/wait`, which show which worker waits for which.
"""

PRESETS_INTRO = """\
Settings for single tasks: `sfactory train NAME`; `sfactory presets` lists them, `sfactory presets atari` those with
this word in their name or in that of their environment. Each preset is one TOML file in `configs/`. This page has the
comment at its top: the source of its settings and what was measured. [Scores](scores.md) has learning curves, scores
with intervals, times and published numbers, also of presets without "Measured" as far as they were run. `FAMILY/*` has
the settings of all other environments of a family.
"""

API_INTRO = """\
`import sfactory` gives these names; it loads neither torch nor gymnasium until one of them is used.
[Python](python.md) has examples. A script that trains, evaluates or plays a match needs a guard,
because its workers import it again:

```py
import sfactory

if __name__ == "__main__":
    outcome = sfactory.train("classic/cartpole", optim={"lr": 1e-3}, stop={"env_steps": 100_000})
```

Settings are given by section, one dict each, under their names in [configuration](configuration.md). Every wrong
argument is a `ValueError` with a message of one line.
"""

RESULTS = {
    "Outcome": "sfactory.run.outcome",
    "EvalResult": "sfactory.play.evaluate",
    "MultiTaskEvalResult": "sfactory.play.evaluate",
    "MatchResult": "sfactory.play.match",
    "Score": "sfactory.play.match",
    "Export": "sfactory.play.export",
    "Comparison": "sfactory.tools.comparison",
}
"""What public functions return: class -> its module."""
INTERNAL = {"Outcome.begin"}
"""Methods that only sfactory calls."""


def escape_cell(text: str) -> str:
    """Escape text for one cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def markdown_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Markdown lines of a table."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def page(title: str, source: str, *lines: str) -> str:
    return "\n".join([f"# {title}", "", HEADER.format(source=source), "", *lines]).rstrip() + "\n"


# -- configuration -------------------------------------------------------------------------------------------


def docstrings(module: ModuleType) -> dict[str, str]:
    """Class.field -> the docstring under it, in one line."""
    texts = {}
    for cls in ast.parse(inspect.getsource(module)).body:
        if not isinstance(cls, ast.ClassDef):
            continue
        for field, after in itertools.pairwise(cls.body):
            if isinstance(field, ast.AnnAssign | ast.Assign) and isinstance(after, ast.Expr):
                target = field.target if isinstance(field, ast.AnnAssign) else field.targets[0]
                texts[f"{cls.name}.{ast.unparse(target)}"] = " ".join(ast.literal_eval(after.value).split())
    return texts


def accepted_values(hint: Any) -> str:
    """Accepted values of a setting, in words."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "whole numbers"
    if typing.get_origin(hint) is dict:
        return "a table"
    return {
        bool: "true, false", int: "whole number", float: "number", str: "text", (float | None): "number or none",
    }[hint]  # fmt: skip


def format_default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value != 0 and abs(value) < 1e-3:
        return f"`{value:.0e}`".replace("e-0", "e-")
    if isinstance(value, tuple):
        return "`" + ",".join(map(str, value)) + "`"
    if value in ("", None) or value == {}:
        return "none"
    if isinstance(value, float | int):
        return f"`{value:g}`" if abs(value) < 1e5 else f"`{human(value)}`"
    return f"`{value}`"


def configuration_page() -> str:
    helps, types, bounds = field_help(), field_types(), bounds_of(Config)
    lines = [CONFIGURATION_INTRO]
    for section in dataclasses.fields(Config):
        cls = typing.get_type_hints(Config)[section.name]
        lines += [f"## {section.name}", "", escape_cell(inspect.getdoc(cls) or ""), ""]
        rows = []
        for field, value in dataclasses.asdict(cls()).items():
            name = f"{section.name}.{field}"
            text = escape_cell(helps[name])
            accepted = ": ".join([accepted_values(types[name]), *(bound.text for bound in bounds[section.name, field])])
            flag = flag_name(name)
            rows.append((f"`--{flag}`", accepted, format_default(value), text, on_resume(flag)))
        lines += [*markdown_table(("flag", "value", "default", "meaning", "resume"), rows), ""]
    return page("Configuration", "the docstrings in sfactory/config/schema.py", *lines)


def on_resume(flag: str) -> str:
    """What a resume does with a setting, and where the mode or the schedule makes a difference."""
    always = rule_of(flag)
    others = {
        "lockstep": rule_of(flag, lockstep=True),
        "linear": rule_of(flag, linear=True),
        "adds or removes the median head": rule_of(flag, other_heads=True),
    }
    return "; ".join([always.name.lower(), *(f"{n}: {r.name.lower()}" for n, r in others.items() if r is not always)])


# -- metrics -------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    lines = [METRICS_INTRO]
    for group, heading in GROUPS.items():
        rows = [
            (f"`{name}`", metric.source, escape_cell(metric.meaning))
            for name, metric in METRICS.items()
            if name.partition("/")[0] == group
        ]
        lines += [f"## {group}: {heading.lower()}", "", *markdown_table(("metric", "measured by", "meaning"), rows), ""]
    return page("Metrics", "sfactory/monitor/table.py", *lines)


# -- presets -------------------------------------------------------------------------------------------------


def presets_page() -> str:
    lines = [PRESETS_INTRO]
    for preset in [*presets.presets(), *presets.family_defaults()]:
        comment = itertools.takewhile(lambda line: line.startswith("#"), preset.path.read_text().splitlines())
        text_lines = [line.lstrip("# ").rstrip() for line in list(comment)[1:]]
        paragraphs = " ".join(text_lines).strip()
        for word in ("Published", "Measured"):
            paragraphs = paragraphs.replace(f" {word}", f"\n\n{word}", 1)
        env = f" (`{preset.env}`)" if preset.env else ""
        wrapped = "\n\n".join(textwrap.fill(escape_text(text), 120) for text in paragraphs.split("\n\n"))
        lines += [f"## {preset.name}", "", escape_text(preset.description) + env, "", wrapped, ""]
    return page("Presets", "the comments in configs/", *lines)


def escape_text(text: str) -> str:
    """Escape text outside of tables, except code between backticks."""
    parts = re.split(r"(`[^`]+`)", text.replace("``", "`"))
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;").replace("*", "\\*") for p in parts)


# -- Python ----------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Functions, classes and results of the Python interface."""
    public = {name: getattr(sfactory, name) for name in sfactory.__all__ if not name.startswith("_")}
    functions = {f"sfactory.{name}": thing for name, thing in public.items() if inspect.isfunction(thing)}
    classes = {name: thing for name, thing in public.items() if inspect.isclass(thing)}
    results = {name: getattr(importlib.import_module(module), name) for name, module in RESULTS.items()}
    lines = [API_INTRO, "## Functions", ""]
    for name, function in sorted(functions.items()):
        lines += function_lines("###", name, function)
    lines += ["## Classes", ""]
    for name, cls in sorted(classes.items()):
        lines += class_lines(f"sfactory.{name}", cls)
    lines += ["## Results", ""]
    for name, cls in results.items():
        if name not in classes:
            lines += class_lines(name, cls)
    return page("Python reference", "the docstrings", *lines)


def function_lines(level: str, name: str, function: Callable[..., Any]) -> list[str]:
    """A heading, the signature and the docstring of a function or method."""
    text = inspect.getdoc(function)
    assert text, f"{name} has no docstring"
    parameters = [p for p in inspect.signature(function).parameters if p != "self"]
    shown = signature(name, function)
    return [f"{level} {name.rpartition('.')[2]}", "", "```py", shown, "```", "", *docstring_lines(text, parameters)]


def signature(name: str, function: Callable[..., Any]) -> str:
    """The signature as it is written in the source: on one line, or with one parameter on each."""
    whole = inspect.signature(function)
    parts: list[str] = []
    for parameter in whole.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not any(part.startswith("*") for part in parts):
            parts.append("*")
        if parameter.name != "self":
            stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            parts.append(f"{stars}{parameter.name}: {parameter.annotation}{default}")
    returns = "" if whole.return_annotation is whole.empty else f" -> {whole.return_annotation}"
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def class_lines(name: str, cls: type) -> list[str]:
    """A heading, the docstring, the fields and the public methods of a class."""
    texts = docstrings(sys.modules[cls.__module__])
    lines = [f"### {name.rpartition('.')[2]}", "", *docstring_lines(inspect.getdoc(cls) or "", [])]
    if cls is Config:
        return [*lines, "Its sections and their fields: [configuration](configuration.md).", ""]
    fields = cls.__annotations__ if dataclasses.is_dataclass(cls) or hasattr(cls, "_fields") else {}
    rows = [
        (
            f"`{field}`",
            f"`{escape_cell(getattr(kind, '__forward_arg__', kind))}`",
            escape_cell(texts.get(f"{cls.__name__}.{field}", "")),
        )
        for field, kind in fields.items()
    ]
    members = {member: value for member, value in vars(cls).items() if not member.startswith("_")}
    for member, value in members.items():
        if isinstance(value, property):
            kind = inspect.signature(value.fget).return_annotation
            meaning = " ".join((inspect.getdoc(value) or "").split())
            rows.append((f"`{member}`", f"`{escape_cell(kind)}`", escape_cell(meaning)))
    lines += [*markdown_table(("attribute", "type", "meaning"), rows), ""] if rows else []
    for member, value in members.items():
        if inspect.isfunction(value) and inspect.getdoc(value) and f"{cls.__name__}.{member}" not in INTERNAL:
            lines += function_lines("####", f"{cls.__name__}.{member}", value)
    return lines


def docstring_lines(text: str, parameters: list[str]) -> list[str]:
    """Markdown of a docstring: paragraphs; `Args`, `Raises` and lines that begin with a parameter become lists."""
    lines, opened = [], False
    for line in text.splitlines():
        section = re.fullmatch(r"(Args|Raises|Returns|Yields):?\s*(.*)", line)
        entry = re.fullmatch(r"(?:    )?([*\w]+(?: \([\w, ]+\))?(?:, [\w]+)*): (.*)", line)
        if section and line.startswith(section[1] + ":"):
            heading = {"Args": "Arguments"}.get(section[1], section[1])
            lines += ["", f"{heading}: {escape_text(section[2])}".rstrip(), *([] if section[2] else [""])]
        elif entry and (line.startswith("    ") or entry[1] in parameters):
            lines += [] if opened else [""]
            lines.append(f"- `{entry[1]}`: {escape_text(entry[2])}")
        else:
            lines.append(("  " if opened and line.startswith("    ") else "") + escape_text(line.strip()))
        opened = bool(lines[-1].startswith(("- ", "  ")))
    joined = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    return [joined, ""]


# -- tables in pages that are otherwise written by hand -----------------------------------------------------------


def with_tables(name: str, source: str, lines: list[str]) -> str:
    """The page `name` with these lines between its two markers."""
    marker = BEGIN.format(source=source)
    before, begin, rest = (HERE / name).read_text().partition(marker)
    _, end, after = rest.partition(END)
    assert end, f"docs/{name} lacks one of its markers, {marker} and {END}"
    return before + begin + "\n" + "\n".join(["", *lines, ""]) + "\n" + end + after


def faults_page() -> str:
    meanings = docstrings(sfactory.errors)
    rows = [(str(int(code)), code.outcome, escape_cell(meanings[f"Exit.{code.name}"])) for code in Exit]
    return with_tables("faults.md", "sfactory/errors.py", markdown_table(("exit", "outcome", "meaning"), rows))


def coming_from_page() -> str:
    lines: list[str] = []
    for program, title in PROGRAMS.items():
        rows = [
            (", ".join(f"`{name}`" for name in known.names(program)), name_here(known), escape_cell(known.note))
            for known in KNOWN
            if known.names(program)
        ]
        lines += [f"## Names in {title}", "", *markdown_table(("there", "here", "difference"), rows), ""]
    return with_tables("coming-from.md", "sfactory/config/known_names.py", lines[:-1])


def name_here(known: Known) -> str:
    """What something is called here, as it is typed."""
    if not known.here:
        return "none"
    typed = re.match(r"[a-z]+\.[a-z]", known.here)
    return f"`--{known.here}`" if typed else f"`{known.here}`" if " " in known.here or "-" in known.here else known.here


# -- scores ----------------------------------------------------------------------------------------------------


@functools.cache
def score_files() -> dict[str, str]:
    """What `python benchmarks/preset_scores.py --report` writes: file below the repository -> its text."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.append(str(BENCHMARKS))
    import preset_scores

    return preset_scores.files()


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration_page,
    "metrics.md": metrics_page,
    "presets.md": presets_page,
    "api.md": api_page,
    "faults.md": faults_page,
    "coming-from.md": coming_from_page,
    "scores.md": lambda: score_files()["docs/scores.md"],
    "gallery.md": lambda: score_files()["docs/gallery.md"],
}


def stale() -> list[str]:
    """Names of pages that are not up to date."""
    return [
        name
        for name, generate in PAGES.items()
        if not (HERE / name).is_file() or (HERE / name).read_text() != generate()
    ]


def main() -> None:
    if "--check" in sys.argv[1:]:
        old = stale()
        sys.exit(f"not up to date: {', '.join(old)}; run python docs/make.py" if old else 0)
    for name, generate in PAGES.items():
        (HERE / name).write_text(generate())
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
