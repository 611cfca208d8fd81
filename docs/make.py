"""The pages that are made from the code: docs/configuration.md, metrics.md, presets.md, the exit codes of faults.md.

    python docs/make.py             write them
    python docs/make.py --check     exit 1 if one of them is not what would be written

Nothing of that is written by hand: the help of a setting is the docstring under its field, the meaning of a metric its
entry in the one table, what is said of a preset the comment at its top.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import sfactory.config.schema
import sfactory.errors
from sfactory.config import Config, presets
from sfactory.config.parsing import field_types, flag_name
from sfactory.errors import Exit
from sfactory.monitor import metrics

HERE = Path(__file__).parent
MADE = "<!-- made by `python docs/make.py`; edit {source} instead -->"

MARK, END = "<!-- made by `python docs/make.py` from sfactory/errors.py -->", "<!-- end -->"

GROUPS = {
    "charts": "How well and how fast",
    "losses": "What an update says of itself",
    "lag": "How old the data is",
    "offpolicy": "How far the policies are apart",
    "proximal": "The averaged policy",
    "queue": "Who waits for whom",
    "stage": "Where the time of every worker goes",
    "ledger": "Rows that were lost",
    "system": "The machine",
    "faults": "What went wrong",
    "eval": "Games of the evaluator",
}
"""First part of a metric's name -> heading."""

ABOUT_SETTINGS = """\
Every setting of a run. On the command line a setting is `--section.field value`, dashes and underscores are the same,
`10M`, `50k` and `2.5e-4` are numbers; a mistyped name is answered with the nearest there is. In a TOML file the section
is a table and the field a key. Which one wins, weakest first:

1. the defaults below
2. the TOML of the preset, or of its family ([presets](presets.md))
3. every `--config FILE`, in their order
4. flags

`sfactory train TARGET --print-config` prints what came of it and starts nothing; the same file lies in the folder of
the run as `config.toml`. Settings that do not go together are refused before anything starts, in one line that names
them. Most are worth leaving alone; a preset sets those that matter for its task.
"""

ABOUT_METRICS = """\
Every metric there is, from the one table in `sfactory/monitor/metrics.py`. The same strings are the keys of a row of
`metrics.jsonl` (beside `env_steps` and `seconds` of training), the tags in TensorBoard, whose step is `env_steps`, and
the words of the panel and of `sfactory report`. A name that is not in the table is an error.

Returns and lengths are of whole, unclipped games. Everything else is over valid steps only (a reset row is none) and
over the time since the row before: every `log.every-seconds` in async, every `log.every-updates` in lockstep.
`<worker>` stands for a worker's name, as `sampler-3`, `<task>` for one of several tasks, as `atari/pong`.

Read first: `charts/episodic_return` and `charts/SPS`; then `lag/mean` and `offpolicy/ess`, which say how stale the data
is and how much of it still counts; then `queue/free` and `stage/*/wait`, which say who waits for whom.
"""

ABOUT_PRESETS = """\
What comes with settings that work: `sfactory train NAME`. Each is one TOML file of `configs/`; what stands here is the
comment at its top, with the source of its settings and what was measured with them, if anything was. `FAMILY/*` is what
every other environment of the family is trained with.
"""


def cell(text: str) -> str:
    """Text that stands in one cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Markdown lines of a table."""
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def page(title: str, source: str, *lines: str) -> str:
    return "\n".join([f"# {title}", "", MADE.format(source=source), "", *lines]).rstrip() + "\n"


# -- configuration -------------------------------------------------------------------------------------------


def docstrings(module: ModuleType) -> dict[str, str]:
    """Class.field -> the docstring under it, in one line."""
    found = {}
    for cls in ast.parse(inspect.getsource(module)).body:
        if not isinstance(cls, ast.ClassDef):
            continue
        for here, after in itertools.pairwise(cls.body):
            if isinstance(here, ast.AnnAssign | ast.Assign) and isinstance(after, ast.Expr):
                target = here.target if isinstance(here, ast.AnnAssign) else here.targets[0]
                found[f"{cls.name}.{ast.unparse(target)}"] = " ".join(ast.literal_eval(after.value).split())
    return found


def kind(hint: Any) -> str:
    """What may be typed for a setting."""
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "whole numbers"
    if typing.get_origin(hint) is dict:
        return "`--env.settings.KEY VALUE`"
    return {
        bool: "true, false", int: "whole number", float: "number", str: "text", (float | None): "number or none",
    }[hint]  # fmt: skip


def default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and value != 0 and abs(value) < 1e-3:
        return f"`{value:.0e}`".replace("e-0", "e-")
    if isinstance(value, tuple):
        return "`" + ",".join(map(str, value)) + "`"
    if value in ("", None) or value == {}:
        return "none"
    if isinstance(value, float | int):
        return f"`{value:g}`" if abs(value) < 1e5 else f"`{metrics.human(value)}`"
    return f"`{value}`"


def configuration() -> str:
    helps, types = docstrings(sfactory.config.schema), field_types()
    lines = [ABOUT_SETTINGS]
    for section in dataclasses.fields(Config):
        cls = typing.get_type_hints(Config)[section.name]
        lines += [f"## {section.name}", "", cell(inspect.getdoc(cls) or ""), ""]
        rows = []
        for field, value in dataclasses.asdict(cls()).items():
            name = f"{section.name}.{field}"
            words = cell(helps[f"{cls.__name__}.{field}"])
            rows.append((f"`--{flag_name(name)}`", kind(types[name]), default(value), words))
        lines += [*table(("flag", "value", "default", "meaning"), rows), ""]
    return page("Configuration", "the docstrings in sfactory/config/schema.py", *lines)


# -- metrics -------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    groups = {name.partition("/")[0] for name in metrics.METRICS}
    assert groups == set(GROUPS), f"docs/make.py: GROUPS lacks a heading, or has one too many: {groups ^ set(GROUPS)}"
    lines = [ABOUT_METRICS]
    for group, heading in GROUPS.items():
        rows = [
            (f"`{name}`", cell(meaning)) for name, meaning in metrics.METRICS.items() if name.partition("/")[0] == group
        ]
        lines += [f"## {group}: {heading.lower()}", "", *table(("metric", "meaning"), rows), ""]
    return page("Metrics", "sfactory/monitor/metrics.py", *lines)


# -- presets -------------------------------------------------------------------------------------------------


def presets_page() -> str:
    lines = [ABOUT_PRESETS]
    for preset in [*presets.presets(), *presets.family_defaults()]:
        comment = itertools.takewhile(lambda line: line.startswith("#"), preset.path.read_text().splitlines())
        said = [line.lstrip("# ").rstrip() for line in list(comment)[1:]]
        paragraphs = " ".join(said).strip()
        for word in ("Published", "Measured"):
            paragraphs = paragraphs.replace(f" {word}", f"\n\n{word}", 1)
        env = f" (`{preset.env}`)" if preset.env else ""
        wrapped = "\n\n".join(textwrap.fill(cell_text(text), 120) for text in paragraphs.split("\n\n"))
        lines += [f"## {preset.name}", "", cell_text(preset.description) + env, "", wrapped, ""]
    return page("Presets", "the comments in configs/", *lines)


def cell_text(text: str) -> str:
    """Text outside a table."""
    return text.replace("<", "&lt;").replace("*", "\\*")


# -- exit codes, inside a page that is written by hand -------------------------------------------------------


def faults() -> str:
    """docs/faults.md with the table of exit codes between its two marks."""
    said = docstrings(sfactory.errors)
    rows = [(str(int(code)), code.outcome, cell(said[f"Exit.{code.name}"])) for code in Exit]
    before, mark, rest = (HERE / "faults.md").read_text().partition(MARK)
    _, end, after = rest.partition(END)
    assert end, f"docs/faults.md has lost one of its marks, {MARK} and {END}"
    return before + mark + "\n" + "\n".join(["", *table(("exit", "outcome", "meaning"), rows), ""]) + "\n" + end + after


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "metrics.md": metrics_page,
    "presets.md": presets_page,
    "faults.md": faults,
}


def stale() -> list[str]:
    """Pages that are not what would be written."""
    return [name for name, make in PAGES.items() if not (HERE / name).is_file() or (HERE / name).read_text() != make()]


def main() -> None:
    if "--check" in sys.argv[1:]:
        old = stale()
        sys.exit(f"not up to date, say python docs/make.py: {', '.join(old)}" if old else 0)
    for name, make in PAGES.items():
        (HERE / name).write_text(make())
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
