"""Write the scores of presets: docs/scores.md, its pictures, the curves in docs/gallery.md, configs/scores.toml.

Everything comes from the kept runs, so the same runs give the same files; presets without runs are said not to be
measured. Called by preset_scores.py and docs/make.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import tomli_w
from preset_table import Published, Row, by_cost
from scores import BLOCKS, RETURN, Curve

from sfactory.monitor.format import duration, human
from sfactory.monitor.statistics import bootstrap, iqm, iqm_curve
from sfactory.tools import svg

ROOT = Path(__file__).resolve().parents[1]
PAGE, GALLERY = "docs/scores.md", "docs/gallery.md"
PICTURES, DATA = "docs/pictures/scores", "configs/scores.toml"
MADE = "made by `make scores` from benchmarks/results/preset_scores.csv"
BEGIN, END = f"<!-- {MADE} -->\n", "<!-- end -->"
BUSY = 0.2  # cores that other programs may use before a time is marked: the system alone uses some hundredths
SIZE, TITLE = (400, 190), 24  # of a picture as it is shown, and of the line above it
NAMES = {RETURN: "training return", "selfplay/elo": "Elo rating"}
"""What a curve shows, in words."""
Measured = Mapping[str, Sequence[Curve]]
"""Preset -> the curves of its finished runs."""


class Stale(NamedTuple):
    """What is kept of a preset whose settings have changed since."""

    runs: Sequence[Curve]
    changed: Sequence[str]
    """Names of these settings."""


NONE: Mapping[str, Stale] = MappingProxyType({})

INTRO = """\
What the [presets](presets.md) reach, trained as they are typed for the steps below, one run at a time. `make scores`
trains what is missing, the cheapest first, goes on where it was stopped, and writes this page. Only some of them:
`make scores ARGS='--only classic/'`.

- **evaluation**: mean return of the episodes that the last policy plays in environments which training has not seen.
  Actions are sampled as in training. In `selfplay/` it is the score of a match: the share of episodes won, where a draw
  counts as half.
- **training**: mean return of the last 100 episodes, over the last tenth of the run. Most publications report this.
- Both are the interquartile mean over seeds with its 95 % bootstrap interval; with fewer than four seeds that is the
  mean. With so few seeds the true interval is wider.
- **median**: over seeds, of the evaluation. Where it is far from the mean, some runs learn and others do not.
- **time**: the median over seeds from the command to its end, the start of all processes included. *busy*: other
  programs used the processor too, and a run alone takes less time.
- **stale**: the settings of the preset have changed since it was measured, and `make scores` runs it again.
- **with**: so changed, because two cores need days for the preset as it is typed.
- **published**: scores of others, with their steps. Their sources are below.
"""
STYLE = (
    "text{font:11px system-ui,'Segoe UI',sans-serif;fill:#57606a}.title{font-size:12px;fill:#1f2328}.back{fill:#fff}"
    ".grid,.axis{stroke:#d8dee4;fill:none}.line{fill:none;stroke:#0072b2;stroke-width:1.8;stroke-linejoin:round}"
    ".band{fill:#0072b2;opacity:.2}.bar{fill:#0072b2}"
    "@media(prefers-color-scheme:dark){text{fill:#9198a1}.title{fill:#e6edf3}.back{fill:#161b22}"
    ".grid,.axis{stroke:#30363d}.line{stroke:#58a6ff}.band,.bar{fill:#58a6ff}}"
)


def write(table: Mapping[str, Row], measured: Measured, root: Path = ROOT, stale: Mapping[str, Stale] = NONE) -> None:
    """Write all files; pictures of presets that have no run any more are deleted."""
    files = outputs(table, measured, root, stale)
    for old in (root / PICTURES).glob("*.svg"):
        if f"{PICTURES}/{old.name}" not in files:
            old.unlink()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def outputs(
    table: Mapping[str, Row], measured: Measured, root: Path = ROOT, stale: Mapping[str, Stale] = NONE
) -> dict[str, str]:
    """File below the repository -> its text. stale: presets that are not measured with their settings of today."""
    pictures = {f"docs/{picture_name(name)}": picture(name, table[name], runs) for name, runs in measured.items()}
    known = {name: text for name, text in pictures.items() if text}
    before, begin, rest = (root / GALLERY).read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{GALLERY} lacks one of its markers, {BEGIN} and {END}"
    curves = "\n".join(["", *gallery(table, measured), "", ""])
    shown = before + begin + curves + end + after
    return {PAGE: page(table, measured, stale), GALLERY: shown, DATA: data(table, measured), **known}


# -- numbers ---------------------------------------------------------------------------------------------------


def evaluations(runs: Sequence[Curve]) -> np.ndarray:
    """[seeds] score of the evaluation of each run."""
    return np.array([float(one.row["score"]) for one in runs])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean over seeds and its 95 % bootstrap interval."""
    return float(iqm(values)), *bootstrap([values], iqm)


def show(values: np.ndarray) -> str:
    """The middle and, for more than one seed, the interval."""
    if not np.isfinite(values).all():
        return "no complete episode"
    middle, low, high = interval(values)
    return number(middle) + (f" ({number(low)} to {number(high)})" if len(values) > 1 else "")


def median(values: np.ndarray) -> str:
    """The median over seeds; nothing for one seed, or where a seed has no score."""
    return number(float(np.median(values))) if len(values) > 1 and np.isfinite(values).all() else ""


def number(value: float) -> str:
    """A score with three or four digits: 0.96, 17.5, 2816."""
    digits = 0 if abs(value) >= 999.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}"


def is_busy(runs: Sequence[Curve]) -> bool:
    """Whether other programs used the processor during a run, as far as that is known."""
    return any(float(one.row["others"] or 0) >= BUSY for one in runs)


def in_one(runs: Sequence[Curve]) -> list[Curve]:
    """The runs whose seconds are those of one command; all of them if every one was interrupted."""
    return [one for one in runs if one.row["continued"] == "no"] or list(runs)


def seconds(runs: Sequence[Curve]) -> float:
    """Median over the runs that were not interrupted."""
    return float(np.median([one.seconds for one in in_one(runs)]))


def each(runs: Sequence[Curve], column: str) -> list[str]:
    """The different values of a column, in their order."""
    return list(dict.fromkeys(one.row[column] for one in runs))


def is_match(row: Row) -> bool:
    return "--against" in row.evaluation


# -- the page --------------------------------------------------------------------------------------------------


def page(table: Mapping[str, Row], measured: Measured, stale: Mapping[str, Stale] = NONE) -> str:
    """docs/scores.md."""
    head = ("preset", "steps", "seeds", "evaluation", "median", "training", "time", "published")
    lines = ["# Scores of the presets", "", f"<!-- {MADE} -->", "", INTRO]
    lines += [_table_line(head), "|---" * len(head) + "|"]
    lines += [_table_line(_cells(name, row, measured.get(name, ()), stale.get(name))) for name, row in _sorted(table)]
    for name, row in _sorted(table):
        lines += ["", f"## {name}", "", *_section(name, row, measured.get(name, ()), stale.get(name))]
    return "\n".join(lines) + "\n"


def _sorted(table: Mapping[str, Row]) -> list[tuple[str, Row]]:
    return sorted(table.items())


def _table_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(name: str, row: Row, runs: Sequence[Curve], stale: Stale | None) -> tuple[str, ...]:
    published = ", ".join(dict.fromkeys(_published(one) for one in row.published))
    link = f"[{name}](#{name.replace('/', '')})" + (f" with `{' '.join(row.changes)}`" if row.changes else "")
    if not runs:
        what = f"stale: {show(evaluations(stale.runs))}" if stale is not None else "not measured"
        return link, human(row.steps), f"0 of {row.seeds}", what, "", "", "", published
    took = duration(seconds(runs)) + (", busy" if is_busy(runs) else "")
    training = "" if is_match(row) else show(np.array([one.final for one in runs]))
    seeds = str(row.seeds) if len(runs) == row.seeds else f"{len(runs)} of {row.seeds}"
    found = evaluations(runs)
    return link, human(row.steps), seeds, show(found), median(found), training, took, published


def _published(one: Published) -> str:
    return f"{one.score} ({one.what})" if one.what else one.score


def _section(name: str, row: Row, runs: Sequence[Curve], stale: Stale | None) -> list[str]:
    """What is known about one preset."""
    flags = "".join(f" {flag}" for flag in row.flags + row.changes)
    commands = (f"`sfactory train {name}{flags} --stop.env-steps {row.steps}`",
                f"`sfactory eval RUN {' '.join(row.evaluation)}`")  # fmt: skip
    lines: list[str] = []
    if not runs and stale is not None:
        then = f"{', '.join(each(stale.runs, 'date'))}, commit {', '.join(each(stale.runs, 'commit'))}"
        lines += [
            f"Stale: changed since this was measured ({then}): {', '.join(stale.changed)}. Evaluation then: "
            f"{show(evaluations(stale.runs))}.",
            "",
        ]
    elif not runs:
        lines += [f"Not measured: no run is finished. On two cores one may take about {_rough(row.minutes)}.", ""]
    else:
        if picture(name, row, runs):
            lines += [f"![Learning curve of {name}]({picture_name(name).removeprefix('docs/')})", ""]
        own = ", ".join(number(value) for value in evaluations(runs))
        few = f"{len(runs)} of " if len(runs) < row.seeds else ""
        what = f"{_count(int(max(each(runs, 'episodes'), key=int)), 'episode')}" + (
            " against random play" if is_match(row) else ""
        )
        protocols = [protocol for protocol in each(runs, "protocol") if protocol]
        lines += [f"- evaluation, {what}: {show(evaluations(runs))}; each seed: {own}"]
        lines += [f"- protocol: {', '.join(protocols)}"] if protocols else []
        if not is_match(row):
            lines.append(f"- training, last tenth: {show(np.array([one.final for one in runs]))}")
        lines.append(f"- {human(row.steps)} steps, {few}{_count(row.seeds, 'seed')}, {_times(runs)}")
        lines.append(f"- {_machine(runs)}, {', '.join(each(runs, 'date'))}, commit {', '.join(each(runs, 'commit'))}")
    lines.append(f"- commands: {', then '.join(commands)}")
    lines += [f"- published: {_published(one)}; {one.source}" for one in row.published]
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _rough(minutes: float) -> str:
    """A guess of a time, without digits that it does not have."""
    if minutes < 1:
        return f"{60 * minutes:.0f} seconds"
    return f"{minutes:g} minutes" if minutes < 100 else f"{minutes / 60:.3g} hours"


def _times(runs: Sequence[Curve]) -> str:
    times = [one.seconds for one in in_one(runs)]
    text = f"{duration(seconds(runs))} a run"
    text += f" ({duration(min(times))} to {duration(max(times))})" if len(times) > 1 else ""
    others = [float(one.row["others"]) for one in runs if one.row["others"]]
    if is_busy(runs):
        text += f"; other programs used up to {max(others):.1f} cores meanwhile"
    if len(others) < len(runs):
        text += "; whether other programs ran is not known of every run"
    if interrupted := sum(one.row["continued"] == "yes" for one in runs):
        left_out = "the time is of training alone" if interrupted == len(runs) else "not counted in the time"
        text += f"; {_count(interrupted, 'run')} interrupted and continued, {left_out}"
    return text


def _machine(runs: Sequence[Curve]) -> str:
    machines = dict.fromkeys((one.row["cores"], one.row["processor"]) for one in runs)
    return " and ".join(f"{cores} {'core' if cores == '1' else 'cores'} of {chip}" for cores, chip in machines)


def gallery(table: Mapping[str, Row], measured: Measured) -> list[str]:
    """Lines of docs/gallery.md: the learning curves, side by side."""
    names = [name for name in by_cost(table) if name in measured and picture(name, table[name], measured[name])]
    if not names:
        return ["No curve of a preset is recorded yet; `make scores` records them."]
    shown = [
        f"[![Learning curve of {name}]({picture_name(name)})](scores.md#{name.replace('/', '')})" for name in names
    ]
    text = (
        "Training return, in self-play the Elo rating; the band is the 95 % interval over seeds. Numbers and machine:"
    )
    return [f"{text} [scores](scores.md).", "", *shown]


# -- pictures ----------------------------------------------------------------------------------------------------


def picture_name(name: str) -> str:
    """File of a learning curve, below docs/."""
    return f"{PICTURES.removeprefix('docs/')}/{name.replace('/', '-')}.svg"


def picture(name: str, row: Row, runs: Sequence[Curve]) -> str:
    """The learning curve as SVG, with a background for light and dark pages; empty without a complete episode."""
    curves = np.stack([one.values for one in runs])
    if not np.isfinite(curves).all():
        return ""
    middle, low, high = iqm_curve([curves])
    at = (np.arange(BLOCKS) + 0.5) * row.steps / BLOCKS
    band = (low, high) if len(runs) > 1 else (None, None)
    drawing = svg.lines(at, [svg.Line(NAMES[row.metric], middle, *band)], human, size=SIZE)
    drawing = re.sub(r'<rect class="strip".*?</rect>', "", drawing)  # a picture in a page shows no tooltips
    width, height = SIZE[0], SIZE[1] + TITLE
    what = f"{NAMES[row.metric]}, {_count(len(runs), 'seed')}"
    title = ", ".join(filter(None, (name, " ".join(row.changes))))
    inner = drawing.replace("<svg ", f'<svg y="{TITLE}" width="{SIZE[0]}" height="{SIZE[1]}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{title}: {what}, over env steps"><style>{STYLE}</style><rect class="back" '
        f'width="{width}" height="{height}" rx="6"/><text class="title" x="10" y="17">{title}</text>'
        f'<text x="{width - 10}" y="17" text-anchor="end">{what}</text>{inner}</svg>\n'
    )


# -- the file for `sfactory presets` -------------------------------------------------------------------------------


def data(table: Mapping[str, Row], measured: Measured) -> str:
    """configs/scores.toml: what `sfactory presets` shows, by preset."""
    entries = {}
    for name, row in _sorted(table):
        if not (runs := measured.get(name)):
            continue
        middle, low, high = interval(evaluations(runs))
        what = "score against random play" if is_match(row) else "mean return"
        changed = f" (with {' '.join(row.changes)})" if row.changes else ""
        entries[name] = {
            "what": f"{what} in {max(int(one.row['episodes']) for one in runs)} episodes{changed}",
            "score": round(middle, 4), "low": round(low, 4), "high": round(high, 4), "seeds": len(runs),
            "steps": row.steps, "seconds": round(seconds(runs), 1), "machine": _machine(runs),
            "busy": is_busy(runs), "date": max(each(runs, "date")),
        }  # fmt: skip
    return f"# Scores of presets for `sfactory presets`, {MADE}; do not edit.\n{tomli_w.dumps(entries)}"
