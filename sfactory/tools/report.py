"""Render one run as one HTML page: no network, no scripts, no other files than the videos of the folder.

All content comes from the run folder (`sfactory.run.reader`). Charts are drawn by `sfactory.tools.svg`, the page by the
template report.html.j2 (`sfactory.tools.page`).
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from sfactory.config import Config
from sfactory.config.parsing import flag_name
from sfactory.files import MiB, is_file, read_end
from sfactory.monitor.format import duration, human, percent, step_words
from sfactory.monitor.table import EPISODES_IN_MEAN, LAG_SHARES, METRICS, STAGES, meaning
from sfactory.run import provenance
from sfactory.run.checkpoint import candidates
from sfactory.run.reader import RunFolder, flat_settings, format_value
from sfactory.tools import svg
from sfactory.tools.page import Chart, Tile, legend, render, short

MAX_EVENTS = 200  # newest lines of log.txt on the page
MOST_LOG = 1 * MiB  # bytes of log.txt that are read
MAX_VIDEOS, MAX_FOLDERS = 1000, 10_000  # that are listed, and searched
MAX_EVALUATIONS, MAX_INFO_COLUMNS = 10, 4  # in the table
RETURN, HUMAN = "charts/episodic_return", "charts/human_normalized"
BROKEN = "faults/broken_share"
EVALUATED, NEWEST = "eval/episodic_return", ("episodic_return", "min", "max", "env_steps")
CURVES: dict[str, dict[str, str]] = {  # title -> metric -> name in the legend
    "episode length": {"charts/episodic_length": "steps"},
    "speed": {"charts/SPS": "steps/s", "charts/FPS": "frames/s"},
    "value loss": {"losses/value_loss": ""},
    "policy loss": {"losses/policy_loss": ""},
    "entropy": {"losses/entropy": "nats"},
    "KL divergences": {
        "offpolicy/kl_behavior_proximal": "behavior to proximal",
        "offpolicy/kl_proximal_policy": "proximal to policy",
        "losses/approx_kl": "the latter, estimated",
    },
    "effective sample size": {"offpolicy/ess": "ESS"},
    "clipped": {"losses/clipfrac": "ratio", "offpolicy/rho_clip_fraction": "rho"},
    "explained variance": {"losses/explained_variance": ""},
    "gradient norm": {"losses/grad_norm": "before clipping"},
    "learning rate": {"charts/learning_rate": ""},
    "waits": {f"queue/{kind}_wait_ms": f"{kind}, ms" for kind in STAGES},
}
"""Curves with a card of their own; return, lag and stages have special cards."""


class Outcome(NamedTuple):
    """How the run ended, in words."""

    css_class: str
    state: str
    sentence: str
    code: str


class Evaluations(NamedTuple):
    """The evaluations of a run: curves, and a table with the newest ones and the best."""

    charts: list[Chart]
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    total: int

    @property
    def omitted(self) -> bool:
        """Whether the table leaves some out."""
        return self.total > len(self.rows)


class VideoLink(NamedTuple):
    """A video of the run folder; `link` is relative to the page."""

    name: str
    link: str


def page(run: RunFolder, beside: Path) -> str:
    """Return the page as HTML. beside: the folder it will be written to; links to videos are relative to it."""
    return render("report.html.j2", content(run, beside))


def content(run: RunFolder, beside: Path) -> dict[str, Any]:
    """Return the variables of the template."""
    lag, lag_histogram = _lag(run)
    events, omitted = _events(run)
    changed, default = _settings(run.config)
    return {
        "name": run.path.resolve().name,
        "env": run.config.env.name,
        "protocol": _protocol(run.config.env.name, run.protocol),
        "seed": run.config.run.seed,
        "outcome": _outcome(run),
        "row_counts": _row_counts(run),
        "tiles": _tiles(run),
        "has_rows": len(run.rows["env_steps"]) > 0,
        "curves": _curves(run),
        "torn": run.unreadable_lines,
        "evaluations": _evaluations(run),
        "evaluation_rules": _evaluation_rules(run.config),
        "lag": lag,
        "lag_histogram": lag_histogram,
        "stages": _stages(run),
        "faults": _faults(run),
        "events": [line[:300] for line in events[-MAX_EVENTS:]],
        "events_omitted": omitted or len(events) > MAX_EVENTS,
        "launches": _launches(run),
        "changed_settings": changed,
        "default_settings": default,
        "checkpoints": _checkpoints(run),
        "videos": _videos(run, beside),
    }


# -- sections ------------------------------------------------------------------------------------------------


def _tiles(run: RunFolder) -> list[Tile]:
    """The numbers in the header: those of the status, which may be newer than the last row."""
    steps, unit = _reached(run, "env_steps"), step_words(run.rows)[0]
    seconds, updates = _reached(run, "seconds"), _reached(run, "updates", "charts/updates")
    tiles = [
        Tile("return", svg.number(_final_return(run)), _episodes_of_return(run)),
        _steps_tile(run, steps),
        Tile("speed", f"{short(steps / seconds)}/s" if seconds > 0 else "-", f"{unit}, over the whole training"),
        Tile("training time", duration(seconds) if np.isfinite(seconds) else "-", run.config.run.mode),
        Tile("updates", short(updates), f"{short(steps / updates)} {unit} each" if updates > 0 else ""),
    ]
    more = [Tile("human scale", f"{_last(run, HUMAN):.2f}", "0 random policy, 1 human tester")]
    tiles[1:1] = [*_evaluation_tile(run), *(more if np.isfinite(_last(run, HUMAN)) else [])]
    return tiles


def _evaluation_tile(run: RunFolder) -> list[Tile]:
    """The mean return of the newest evaluation, and its lowest and highest; none without an evaluation."""
    known = np.flatnonzero(np.isfinite(run.column(EVALUATED)))
    if not known.size:
        return []
    mean, low, high, steps = (float(run.column(f"eval/{name}")[known[-1]]) for name in NEWEST)
    episodes = f"{run.config.eval.episodes:,} episodes" if run.config.eval.every else "whole episodes"
    if len(run.config.env.tasks) > 1:
        note = f"mean over tasks of {episodes} each"
    else:
        spread = f", lowest {svg.number(low)}, highest {svg.number(high)}" if low <= high else ""
        note = f"mean of {episodes}{spread}"
    return [Tile("evaluated return", svg.number(mean), note + (f"; at {human(steps)} steps" if steps >= 0 else ""))]


def _steps_tile(run: RunFolder, steps: float) -> Tile:
    """Trained steps, and the frames or the steps of environments that belong to them."""
    unit, others = step_words(run.rows)
    if others:
        environment_steps = _reached(run, "environment_steps", "charts/environment_steps")
        return Tile(unit, short(steps), f"{short(environment_steps)} {others}")
    known = np.isfinite(run.column("charts/frames"))  # a row of an evaluation has no frames
    rows = float(run.rows["env_steps"][known][-1]) if known.any() else float("nan")
    frames = _last(run, "charts/frames")
    same = frames == rows or not np.isfinite(frames)
    return Tile(
        unit, short(steps), "trained" if same else f"{short(frames / rows * steps if rows > 0 else frames)} frames"
    )


def _reached(run: RunFolder, name: str, metric: str = "") -> float:
    """How far the run is by its status; by the last row where that is further, or the status does not say it.

    A run that was stopped writes no row of the updates since the last one in lockstep. metric: its name in a row.
    """
    known = [_last(run, metric or name)]
    if isinstance(value := run.status.get(name), int | float):
        known.append(float(value))
    return max((value for value in known if np.isfinite(value)), default=float("nan"))


def _episodes_of_return(run: RunFolder) -> str:
    """What the training return is the mean of; earlier versions did not record how many episodes that were."""
    count, tasks = run.status.get("episodes"), len(run.config.env.tasks)
    few = isinstance(count, int | float) and 0 < count < EPISODES_IN_MEAN
    if tasks > 1:
        return f"mean over tasks of {f'at least {count:.0f}' if few else f'the last {EPISODES_IN_MEAN}'} episodes each"
    return f"mean of all {count:.0f} episodes so far" if few else f"mean of the last {EPISODES_IN_MEAN} episodes"


def _final_return(run: RunFolder) -> float:
    """The training return, as the status says it; where an earlier version did not, from the last row that has one."""
    value = run.status.get("training_return", _last(run, RETURN))
    return float(value) if isinstance(value, int | float) else float("nan")


def _protocol(env: str, protocol: str) -> str:
    """What is said of the protocol beside the environment: nothing if it is the same, as of gymnasium/ID."""
    return "" if protocol == env or env.endswith(f"/{protocol}") else protocol


def _outcome(run: RunFolder) -> Outcome:
    """The run's state, its final sentence and its exit code."""
    css_class = {"finished": "good", "running": "on"}.get(run.state, "bad")
    fixed = {"running": "still training; the page shows the rows so far", "killed": "killed; no outcome was recorded"}
    sentence = fixed.get(run.state, str(run.status.get("sentence", "")))
    code = f" (exit {run.status['exit']})" if run.state != "killed" and "exit" in run.status else ""
    return Outcome(css_class, run.state, sentence, code)


def _row_counts(run: RunFolder) -> str:
    """The row counts of the last launch, and whether they are consistent; empty if none were recorded."""
    counts = run.status.get("ledger")
    if not isinstance(counts, dict) or not {"sampled", "trained", "skipped", "discarded", "in_flight"} <= set(counts):
        return ""
    counts = {name: int(count) for name, count in counts.items()}
    total = counts["trained"] + counts["skipped"] + counts["discarded"] + counts["in_flight"]
    verdict = "consistent" if total == counts["sampled"] else "NOT consistent"
    return (
        f"Row counts of the last launch: {counts['sampled']:,} rows sampled = {counts['trained']:,} trained + "
        f"{counts['skipped']:,} skipped + {counts['discarded']:,} discarded + {counts['in_flight']:,} in flight; "
        f"{verdict}."
    )


def _curves(run: RunFolder) -> list[Chart]:
    """The return first, then everything that was measured."""
    several = len(run.config.env.tasks) > 1
    returns = {f"{RETURN}/{task}": task for task in run.config.env.tasks}
    relative = {f"{HUMAN}/{task}": task for task in run.config.env.tasks}
    charts = [_chart(run, "training return", returns if several else {RETURN: "mean of 100 episodes"}, wide=True)]
    if not several:
        spread = {"max": "highest", "std": "standard deviation", "min": "lowest"}
        charts.append(_chart(run, "returns of 100 episodes", {f"{RETURN}_{key}": text for key, text in spread.items()}))
    charts.append(_chart(run, "human-normalized return", relative if several else {HUMAN: "0 random, 1 human"}))
    for title, metrics in CURVES.items():
        unit, others = step_words(run.rows)
        if title == "speed" and others:
            metrics = {"charts/SPS": f"{unit}/s", "charts/environment_SPS": f"{others}/s"}
        elif title == "speed" and np.array_equal(run.column("charts/SPS"), run.column("charts/FPS"), equal_nan=True):
            metrics = {"charts/SPS": "steps/s"}
        charts.append(_chart(run, title, metrics))
    for name in [name for name in run.rows if name.startswith("info/")]:
        charts.append(_chart(run, name.removeprefix("info/"), {name: "mean of 100 episodes"}))
    if np.nanmax(run.column(BROKEN), initial=0.0) > 0:  # of most runs the curve would be a line at 0
        charts.append(_chart(run, "broken episodes", {BROKEN: "share of the last 1,000"}))
    return [chart for chart in charts if chart is not None]


def _evaluations(run: RunFolder) -> Evaluations | None:
    """Curves by the steps of the evaluated policy, and a table of the newest ones and the best; None without any."""
    at = np.flatnonzero(np.isfinite(run.column("eval/env_steps")) & np.isfinite(run.column("eval/episodic_return")))
    if not at.size:
        return None
    columns = {name: run.column(name)[at] for name in run.rows if name.startswith("eval/")}
    missing = np.full(len(at), np.nan)
    x = columns["eval/env_steps"]

    def chart(title: str, names: dict[str, str], wide: bool = False) -> Chart:
        known = {name: text for name, text in names.items() if name in columns}
        curves = [svg.Line(text or title, columns[name], points=True) for name, text in known.items()]
        if wide and "eval/min" in columns:
            curves[0] = replace(curves[0], low=columns["eval/min"], high=columns.get("eval/max", missing))
        return _drawn(title, x, curves, list(known.values()), [columns[name][-1] for name in known], wide)

    tasks = run.config.env.tasks
    each = {f"eval/episodic_return/{task}": task for task in tasks} if len(tasks) > 1 else {}
    charts = [chart("evaluated return", {"eval/episodic_return": "mean", "eval/iqm": "IQM"}, wide=True)]
    charts += [chart("by task", each)] if set(each) & set(columns) else []
    charts.append(chart("evaluated length", {"eval/episodic_length": "steps"}))
    infos = [name for name in columns if name.startswith("eval/info/")]
    charts += [chart(name.removeprefix("eval/info/"), {name: "mean"}) for name in infos]
    shown = {"eval/env_steps": "steps", "eval/episodic_return": "mean", "eval/iqm": "IQM", "eval/std": "std",
             "eval/min": "lowest", "eval/max": "highest", "eval/episodic_length": "length"}  # fmt: skip
    shown = {name: text for name, text in shown.items() if name in columns}
    shown |= {name: name.removeprefix("eval/info/") for name in infos[:MAX_INFO_COLUMNS]}
    best = int(np.argmax(columns["eval/episodic_return"]))
    chosen = sorted({best, *range(max(0, len(x) - MAX_EVALUATIONS), len(x))}, reverse=True)
    rows = [
        tuple(f"{columns[n][i]:,.0f}" if n == "eval/env_steps" else svg.number(columns[n][i]) for n in shown)
        + ("best" if i == best and len(x) > 1 else "",)
        for i in chosen
    ]
    return Evaluations(charts, (*shown.values(), ""), rows, len(x))


def _evaluation_rules(config: Config) -> str:
    """How many episodes an evaluation has, and how actions are chosen."""
    if not config.eval.every:
        return ""
    actions = "the most likely action" if config.eval.greedy else "sampled actions"
    return f": {config.eval.episodes:,} episodes, {actions}; the band reaches from the lowest to the highest return"


def _lag(run: RunFolder) -> tuple[list[Chart], bool]:
    """Lag over time, and as a histogram where rows hold one; also returns whether they do."""
    x, mean = run.rows["env_steps"], run.column("lag/mean")
    if not np.isfinite(mean).any():
        return [], False
    band = svg.Line("mean", mean, np.zeros_like(mean), run.column("lag/max"))
    over_time = svg.lines(x, [band, svg.Line("95th percentile", run.column("lag/p95"))], human)
    newest = [_last(run, "lag/mean"), _last(run, "lag/p95")]
    charts = [Chart("over time", over_time, legend(["mean", "95th percentile"], newest))]
    shares = np.stack([run.column(f"lag/share_{name}") for name in LAG_SHARES])
    known = np.isfinite(shares).all(axis=0)
    if not known.any():
        return charts, False
    # A row covers the steps since the one before; evaluations may have rows of their own between these.
    weights = np.diff(x[known], prepend=0.0)
    histogram = (shares[:, known] * weights).sum(axis=1) / weights.sum()
    names = [text.replace(" or more", "+").replace(" to ", "-").replace(" or ", "-") for text in LAG_SHARES.values()]
    return [*charts, Chart("share of all steps", svg.bars(names, histogram.tolist(), "histogram of lag"))], True


def _stages(run: RunFolder) -> list[Chart]:
    """Shares of wall time by stage, a chart for each kind of worker."""
    charts = []
    for kind, stages in STAGES.items():
        layers = [(stage, run.column(f"stage/{kind}/{stage}")) for stage in stages]
        if any(np.isfinite(y).any() for _, y in layers):
            layers = [*layers[1:], layers[0]]  # waiting is drawn on top, in grey: what is below it is work
            classes = [*(f"c{i}" for i in range(len(stages) - 1)), "c6"]
            means = [f"{100 * np.nanmean(y) if np.isfinite(y).any() else 0:.0f} %" for _, y in layers]
            chart = svg.stacked(run.rows["env_steps"], layers, classes, human)
            charts.append(Chart(kind, chart, legend([name for name, _ in layers], means, classes)))
    return charts


def _faults(run: RunFolder) -> list[tuple[str, str, str]]:
    """Name, count or share, and meaning of the faults that occurred."""
    values = [(name, _last(run, name)) for name in METRICS if name.startswith("faults/")]
    return [
        (name, percent(value) if name.endswith("_share") else f"{value:.0f}", meaning(name))
        for name, value in values
        if value > 0
    ]


def _events(run: RunFolder) -> tuple[list[str], bool]:
    """The newest lines of log.txt, and whether there are older ones."""
    try:
        text, is_all = read_end(run.path / "log.txt", MOST_LOG)
    except FileNotFoundError:
        return [], False
    return text.splitlines(), not is_all


def _settings(config: Config) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Settings that differ from their default (name, value, default), and the others (name, value)."""
    values, defaults = flat_settings(config), flat_settings(Config())
    changed, unchanged = [], []
    for name, value in values.items():
        if name in defaults and value == defaults[name]:
            unchanged.append((flag_name(name), format_value(value)))
        else:
            changed.append(
                (flag_name(name), format_value(value), format_value(defaults[name]) if name in defaults else "")
            )
    return changed, unchanged


def _launches(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is known of the first launch and of the newest one: heading, and rows of name and text."""
    entries = provenance.read(run.path)
    if len(entries) < 2:
        return [("", provenance.rows(entry)) for entry in entries]
    first = [("First launch", provenance.rows(entries[0]))]
    return [*first, (f"Newest of {len(entries):,} launches", provenance.rows(entries[-1]))]


def _checkpoints(run: RunFolder) -> list[tuple[str, str, str, str]]:
    """Name, steps, size and date of the checkpoints."""
    rows = []
    for folder in reversed(candidates(run.path)):
        with contextlib.suppress(OSError):  # it may be pruned at this moment
            size = sum(file.lstat().st_size for file in folder.iterdir())
            made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(folder.stat().st_mtime))
            rows.append((folder.name, f"{int(folder.name):,}", f"{size / 1e6:.1f} MB", made))
    return rows


def _videos(run: RunFolder, beside: Path) -> list[VideoLink]:
    """The videos of the run folder, linked by relative paths; no links, which may lead elsewhere."""
    folder, found = run.path.resolve(), list[Path]()
    for count, (place, _, names) in enumerate(os.walk(folder)):  # follows no links
        found += [Path(place, name) for name in names if name.endswith(".mp4") and is_file(Path(place, name))]
        if count > MAX_FOLDERS or len(found) > MAX_VIDEOS:
            break
    return [
        VideoLink(str(file.relative_to(folder)), quote(os.fsencode(os.path.relpath(file, beside.resolve()))))
        for file in sorted(found)[:MAX_VIDEOS]
    ]


# -- parts ---------------------------------------------------------------------------------------------------


def _last(run: RunFolder, name: str) -> float:
    """Return the newest value of a metric; NaN if it has none."""
    values = run.column(name)
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else float("nan")


def _chart(run: RunFolder, title: str, metrics: dict[str, str], wide: bool = False) -> Chart | None:
    """Draw the curves of some metrics; None if none of them was measured."""
    known = {metric: name for metric, name in metrics.items() if np.isfinite(run.column(metric)).any()}
    if not known:
        return None
    curves = [svg.Line(name or title, run.column(metric)) for metric, name in known.items()]
    newest = [_last(run, metric) for metric in known]
    return _drawn(title, run.rows["env_steps"], curves, list(known.values()), newest, wide)


def _drawn(
    title: str, x: np.ndarray, curves: list[svg.Line], names: list[str], newest: list[float], wide: bool
) -> Chart:
    """A card with curves; a wide one has a second drawing for narrow screens."""
    drawing = svg.lines(x, curves, human, size=svg.WIDE if wide else svg.SMALL)
    narrow = svg.lines(x, curves, human, size=svg.NARROW) if wide else ""
    return Chart(title, drawing, legend(names, newest), wide, narrow)
