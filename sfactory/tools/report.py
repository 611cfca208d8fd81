"""The verb report: one run as one page of HTML. No network, no scripts, nothing beside it but the folder's videos.

Everything comes from the run folder (`sfactory.run.reader`), drawn by `sfactory.tools.svg`. The page follows the reader's
light or dark setting and prints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import numpy as np

from sfactory.config import Config
from sfactory.config.parsing import flag_name
from sfactory.errors import CommandError, Exit
from sfactory.monitor.metrics import LAG_SHARES, METRICS, STAGES, duration, human, meaning
from sfactory.run.reader import RunFolder, flat, read, written
from sfactory.tools import svg
from sfactory.tools.report_style import STYLE

EVENTS = 200  # newest lines of log.txt that are shown
RETURN, HUMAN = "charts/episodic_return", "charts/human_normalized"
CURVES: dict[str, dict[str, str]] = {  # title -> metric -> name in the legend
    "episode length": {"charts/episodic_length": "steps"},
    "speed": {"charts/SPS": "steps/s", "charts/FPS": "frames/s"},
    "value loss": {"losses/value_loss": ""},
    "policy loss": {"losses/policy_loss": ""},
    "entropy": {"losses/entropy": "nats"},
    "KL divergences": {
        "offpolicy/kl_behavior_proximal": "behavior to proximal",
        "offpolicy/kl_proximal_policy": "proximal to policy",
        "losses/approx_kl": "approx_kl",
    },
    "effective sample size": {"offpolicy/ess": "ESS"},
    "clipped": {"losses/clipfrac": "ratio", "offpolicy/rho_clip_fraction": "rho"},
    "explained variance": {"losses/explained_variance": ""},
    "gradient norm": {"losses/grad_norm": "before clipping"},
    "learning rate": {"charts/learning_rate": ""},
    "waits": {f"queue/{kind}_wait_ms": f"{kind}, ms" for kind in STAGES},
}
"""Every curve of its own card; the return, the lag and the stages have cards made for them."""


def main(args: list[str]) -> int:
    """The verb."""
    from sfactory.config import presets

    flags, own, names = presets.split_flags(args, {"-o": True})
    if flags:
        raise CommandError(Exit.USAGE, f"{flag_name(next(iter(flags)))}: report shows a run as it is; see --help")
    if len(names) != 1:
        raise CommandError(Exit.USAGE, f"expected one runs/NAME, got {' '.join(names) or 'none'}")
    run = read(Path(names[0]))
    target = Path(own["-o"][-1]) if "-o" in own else run.path / "report.html"
    if not target.parent.is_dir():
        raise CommandError(Exit.USAGE, f"{target}: the folder {target.parent} does not exist")
    target.write_text(page(run, target.parent), encoding="utf-8")
    print(f"written: {target} ({target.stat().st_size / 1000:.0f} kB); open it in a browser")
    return 0


def page(run: RunFolder, beside: Path) -> str:
    """The whole page. beside: the folder it will lie in, which links to videos start from."""
    name = escape(run.path.resolve().name)
    sections = [
        _header(run),
        _curves(run),
        _lag(run),
        _stages(run),
        _faults(run),
        _configuration(run.config),
        _files(run, beside),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name} - sfactory</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


# -- sections ------------------------------------------------------------------------------------------------


def _header(run: RunFolder) -> str:
    """What it is, what came of it, how it ended."""
    steps = _last(run, "env_steps")
    seconds = float(run.status.get("seconds") or _last(run, "seconds"))
    tiles = [
        ("return", svg.number(_score(run)), "mean of the last 100 games"),
        ("steps", _short(steps), f"{_short(_last(run, 'charts/frames'))} frames"),
        ("speed", f"{_short(steps / seconds)}/s" if seconds > 0 else "-", "steps, over the whole training"),
        ("training time", duration(seconds) if np.isfinite(seconds) else "-", f"{run.config.run.mode}"),
        ("updates", _short(_last(run, "charts/updates")), f"{run.config.batch_rows:,} rows each"),
    ]
    if np.isfinite(_last(run, HUMAN)):
        tiles.insert(1, ("human scale", f"{_last(run, HUMAN):.2f}", "0 random policy, 1 human tester"))
    boxes = "".join(
        f'<div class="tile"><span>{what}</span><b>{value}</b><small>{more}</small></div>' for what, value, more in tiles
    )
    return (
        f"<header><h1>{escape(run.path.resolve().name)}</h1>\n<p>{escape(run.config.env.name)}"
        f"{' · ' + escape(run.protocol) if run.protocol else ''} · seed {run.config.run.seed}</p>\n"
        f"{_outcome(run)}{boxes and f'<div class=tiles>{boxes}</div>'}</header>\n"
    )


def _score(run: RunFolder) -> float:
    """The training return it ended with: of the status where it says one, else of the last row that has one."""
    said = run.status.get("training_return")
    return float(said) if isinstance(said, int | float) else _last(run, RETURN)


def _outcome(run: RunFolder) -> str:
    """The word it ended with, its sentence, and the book of rows."""
    look = {"finished": "good", "running": "on"}.get(run.state, "bad")
    said = {"running": "still training; this page shows it as far as it is", "killed": "ended without a last word"}
    sentence = said.get(run.state, str(run.status.get("sentence", "")))
    code = f" (exit {run.status['exit']})" if run.state != "killed" and "exit" in run.status else ""
    lines = f'<p><span class="word {look}">{escape(run.state)}</span> {escape(sentence)}{escape(code)}</p>\n'
    book = run.status.get("ledger")
    if isinstance(book, dict) and {"sampled", "trained", "skipped", "discarded", "in_flight"} <= set(book):
        rest = book["trained"] + book["skipped"] + book["discarded"] + book["in_flight"]
        verdict = "it balances" if rest == book["sampled"] else "it does NOT balance"
        lines += (
            f'<p class="quiet">RowCounts of the last launch: {book["sampled"]:,} rows sampled = '
            f"{book['trained']:,} trained + {book['skipped']:,} skipped + {book['discarded']:,} discarded + "
            f"{book['in_flight']:,} in flight; {verdict}.</p>\n"
        )
    return lines


def _curves(run: RunFolder) -> str:
    """Return first, then everything that was measured."""
    if not len(run.rows["env_steps"]):
        return "<section><h2>Curves</h2><p>There is no row of metrics yet.</p></section>\n"
    tasks = {f"{RETURN}/{task}": task for task in run.config.env.tasks}
    returns = tasks if len(tasks) > 1 else {RETURN: "mean of 100 games"}
    relative = {f"{HUMAN}/{task}": task for task in run.config.env.tasks}
    cards = [_card(run, "training return", returns, wide=True)]
    cards.append(_card(run, "human-normalised return", relative if len(tasks) > 1 else {HUMAN: "0 random, 1 human"}))
    for title, metrics in CURVES.items():
        if title == "speed" and np.array_equal(run.column("charts/SPS"), run.column("charts/FPS"), equal_nan=True):
            metrics = {"charts/SPS": "steps/s"}
        cards.append(_card(run, title, metrics))
    torn = "" if not run.torn else f'<p class="quiet">{run.torn} torn or unreadable rows are left out.</p>'
    said = f'<p class="quiet">By env steps; numbers are the newest.</p>{torn}'
    return f"<section><h2>Curves</h2>{said}<div class=cards>{''.join(cards)}</div></section>\n"


def _lag(run: RunFolder) -> str:
    """How old the data was: over time, and as a histogram where rows hold one."""
    x, mean = run.rows["env_steps"], run.column("lag/mean")
    if not np.isfinite(mean).any():
        return ""
    band = svg.Line("mean", mean, np.zeros_like(mean), run.column("lag/max"))
    chart = svg.lines(x, [band, svg.Line("95th percentile", run.column("lag/p95"))], human)
    newest = [_last(run, "lag/mean"), _last(run, "lag/p95")]
    cards = _framed("over time", chart, ["mean", "95th percentile"], newest)
    shares = np.stack([run.column(f"lag/share_{name}") for name in LAG_SHARES])
    known = np.isfinite(shares).all(axis=0)
    if known.any():
        weights = np.diff(x, prepend=0.0)[known]  # a row speaks for the steps since the one before
        histogram = (shares[:, known] * weights).sum(axis=1) / weights.sum()
        short = {" or more": "+", " to ": "-", " or ": "-"}
        names = [_replaced(words, short) for words in LAG_SHARES.values()]
        cards += _framed("share of all steps", svg.bars(names, histogram.tolist(), "histogram of lag"))
        said = ""
    else:
        said = '<p class="quiet">No histogram: the rows of this run hold the mean, 95th percentile and worst only.</p>'
    return (
        '<section><h2>Lag</h2><p class="quiet">Updates between acting and learning; the band reaches up to the worst '
        f"step.</p>{said}<div class=cards>{cards}</div></section>\n"
    )


def _stages(run: RunFolder) -> str:
    """Where the time of every kind of worker went."""
    cards = ""
    for kind, stages in STAGES.items():
        layers = [(stage, run.column(f"stage/{kind}/{stage}")) for stage in stages]
        if any(np.isfinite(y).any() for _, y in layers):
            layers = [*layers[1:], layers[0]]  # waiting lies on top, in grey: what is below it is work
            looks = [*(f"c{i}" for i in range(len(stages) - 1)), "c6"]
            means = [f"{100 * np.nanmean(y) if np.isfinite(y).any() else 0:.0f} %" for _, y in layers]
            chart = svg.stacked(run.rows["env_steps"], layers, looks, human)
            cards += _framed(kind, chart, [name for name, _ in layers], means, looks)
    return f"<section><h2>Where the time went</h2><div class=cards>{cards}</div></section>\n" if cards else ""


def _faults(run: RunFolder) -> str:
    """Counts, and what the log says."""
    counts = [(name, _last(run, name)) for name in METRICS if name.startswith("faults/")]
    rows = [(name, f"{count:.0f}", meaning(name)) for name, count in counts if count > 0]
    table = _table(("metric", "count", "meaning"), rows) if rows else "<p>No faults.</p>"
    log = run.path / "log.txt"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    cut = f'<p class="quiet">The last {EVENTS} of {len(lines):,} lines of log.txt.</p>' if len(lines) > EVENTS else ""
    events = f"{cut}<pre>{escape(chr(10).join(line[:300] for line in lines[-EVENTS:]))}</pre>" if lines else ""
    return f"<section><h2>Faults and events</h2>{table}{events}</section>\n"


def _configuration(config: Config) -> str:
    """What differs from the defaults, then everything."""
    mine, default = flat(config), flat(Config())
    changed = [
        (flag_name(n), written(v), written(default[n]) if n in default else "") for n, v in mine.items()
        if n not in default or v != default[n]
    ]  # fmt: skip
    rest = [(flag_name(n), written(v)) for n, v in mine.items() if n in default and v == default[n]]
    return (
        f"<section><h2>Configuration</h2>{_table(('setting', 'value', 'default'), changed)}"
        f"<details><summary>{len(rest)} settings at their defaults</summary>{_table(('setting', 'value'), rest)}"
        "</details></section>\n"
    )


def _files(run: RunFolder, beside: Path) -> str:
    """Checkpoints and videos, linked by relative paths."""
    rows = []
    for folder in sorted(run.path.glob("checkpoints/[0-9]*")):
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(folder.stat().st_mtime))
        steps = f"{int(folder.name):,}" if folder.name.isdigit() else ""
        rows.append((folder.name, steps, f"{size / 1e6:.1f} MB", made))
    table = _table(("name", "steps", "size", "made"), rows)
    found = f"<section><h2>Checkpoints</h2>{table}</section>\n" if rows else ""
    videos = ""
    for file in sorted(run.path.rglob("*.mp4")):
        link = quote(os.path.relpath(file.resolve(), beside.resolve()))
        name = escape(str(file.relative_to(run.path)))
        videos += (
            f'<figure><video controls preload="metadata" src="{link}"></video>'
            f'<figcaption><a href="{link}">{name}</a></figcaption></figure>'
        )
    return found + (f"<section><h2>Videos</h2><div class=cards>{videos}</div></section>\n" if videos else "")


# -- parts ---------------------------------------------------------------------------------------------------


def _last(run: RunFolder, name: str) -> float:
    """The newest value of a metric; NaN where there is none."""
    values = run.column(name)
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else float("nan")


def _short(value: float) -> str:
    """12.3M, or a dash for what is not known."""
    return human(value) if np.isfinite(value) else "-"


def _card(run: RunFolder, title: str, metrics: dict[str, str], wide: bool = False) -> str:
    """Curves of some metrics; nothing at all where none of them was measured."""
    known = {metric: name for metric, name in metrics.items() if np.isfinite(run.column(metric)).any()}
    if not known:
        return ""
    curves = [svg.Line(name or title, run.column(metric)) for metric, name in known.items()]
    chart = svg.lines(run.rows["env_steps"], curves, human, size=svg.WIDE if wide else svg.SMALL)
    return _framed(title, chart, list(known.values()), [_last(run, metric) for metric in known], wide=wide)


def _framed(
    title: str,
    chart: str,
    names: Sequence[str] = (),
    values: Sequence[float | str] = (),
    looks: Sequence[str] = (),
    wide: bool = False,
) -> str:
    """A chart with its title and its legend; values: what to say of each curve, as its newest number."""
    legend = ""
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        said = value if isinstance(value, str) else svg.number(value)
        look = looks[i] if looks else f"c{i}"
        legend += f'<span class="key"><i class="{look}"></i>{escape(name)} <b>{said}</b></span>'
    return (
        f'<figure{" class=wide" if wide else ""}><figcaption><b>{escape(title)}</b>{legend}</figcaption>'
        f"{chart}</figure>"
    )


def _replaced(text: str, words: dict[str, str]) -> str:
    for before, after in words.items():
        text = text.replace(before, after)
    return text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
