"""Blocks of the panel, a few lines each. Fields that do not fit in `width` are left out, the last first."""

from __future__ import annotations

from sfactory.monitor.bottleneck import bottleneck, bound, busy_shares
from sfactory.monitor.format import duration, human, percent, remaining, step_words
from sfactory.monitor.panel.lines import ACCENT, BAD, DIM, GOOD, LABEL, NUMBER, WARN, Line, bar, chart, entry, label
from sfactory.monitor.panel.snapshot import Snapshot, return_trend
from sfactory.monitor.table import STAGES

NO_ROW_S = 30.0  # age of the newest row from which the panel shows it
ONE_LINE = 70  # columns from which faults, checkpoint and load are in one line
STAGES_WIDTH = 37  # columns for the stages of a worker, next to its bar
MAX_SQUARES = 16  # up to so many slots, each is drawn
LOSSES = {
    "entropy": "losses/entropy", "explained": "losses/explained_variance", "value": "losses/value_loss",
    "policy": "losses/policy_loss", "KL": "losses/approx_kl", "clipped": "losses/clipfrac",
    "q": "losses/q", "q loss": "losses/q_loss", "grad": "losses/grad_norm", "lr": "charts/learning_rate",
}  # fmt: skip
MEANING = {
    "sampling-bound": "the others wait for environments",
    "inference-bound": "the others wait for actions",
    "learner-bound": "the others wait for updates",
}


def progress(s: Snapshot, width: int) -> list[Line]:
    """Speed, fraction of the roofline, fraction done, time left; with several agents, of them and of environments."""
    sps, fps = s.value("charts/SPS"), s.value("charts/FPS")
    steps, others = step_words(s.numbers)
    running = s.state == "running"
    if sps is None:
        elapsed = f", {duration(s.since)} so far" if s.since >= 1 else ""
        return [entry("starting", [[("workers are loading", ""), (elapsed, DIM)]], width)]
    speed: list[Line] = [[(human(sps), f"bold {ACCENT}"), (f" {steps}/s", "")]]
    if fps is not None and abs(fps - sps) > 0.01 * sps:
        speed.append([(human(fps), NUMBER), (" frames/s", "")])
    if s.roofline:
        speed.append([(f"{100 * sps / s.roofline:.0f}%", NUMBER), (" roofline", "")])
    if (updates := s.value("charts/updates")) is not None:
        speed.append([(human(updates), NUMBER), (" updates", "")])
    if not s.roofline and running:
        speed.append([("roofline: sfactory bench", DIM)])
    lines = [entry("speed", speed, width)]
    if others:
        rates = {f"{others}/s": s.value("charts/environment_SPS"), others: s.value("charts/environment_steps")}
        lines.append(entry("", [[(human(x or 0.0), NUMBER), (f" {words}", "")] for words, x in rates.items()], width))
    done, left = remaining(s.numbers, s.stop, s.env_steps, s.seconds)
    goal = f" of {human(s.stop.env_steps)}" if s.stop.env_steps else ""
    fields: list[Line] = [[(human(s.env_steps), NUMBER), (f"{goal} {steps}", "")]]
    if running and left is not None:
        fields.append([(duration(max(0.0, left - s.since)), NUMBER), (" left", "")])
    fields.append([("after ", ""), (duration(s.seconds + (s.since if running else 0.0)), NUMBER)])
    if done is None:
        lines.append(entry("progress", fields, width))
    else:
        percent = f" {100 * done:3.0f}%"
        progress_bar = bar(done, max(0, width - LABEL - len(percent)), ACCENT)
        lines += [[*label("progress"), *progress_bar, (percent, NUMBER)], entry("", fields, width)]
    if running and s.since >= NO_ROW_S:
        lines.append(entry("", [[(f"no row for {duration(s.since)}", WARN)]], width))
    return lines


def learning(s: Snapshot, width: int, rows: int) -> list[Line]:
    """Return, its trend, and its curve in `rows` lines."""
    now = s.value("charts/episodic_return")
    if now is None:
        return [entry("return", [[("no episode completed yet", DIM)]], width)]
    target = s.stop.target_return
    fields: list[Line] = [[(f"{now:.4g}", f"bold {GOOD}"), ("" if target is None else f" of {target:g}", "")]]
    if (change := return_trend(s.history)) is not None:
        difference, seconds = change
        arrow = ("▲ ", GOOD) if difference > 0 else ("▼ ", WARN) if difference < 0 else ("", "")
        words = f"{difference:+.3g} in {duration(seconds)}" if difference else f"unchanged for {duration(seconds)}"
        fields.append([arrow, (words, "")])
    if (relative := s.value("charts/human_normalized")) is not None:
        fields.append([("human-normalized ", ""), (f"{relative:.3f}", NUMBER)])
    if (length := s.value("charts/episodic_length")) is not None:
        others = step_words(s.numbers)[1]
        fields.append([("length ", ""), (f"{length:.4g}", NUMBER), (f" {others}" if others else "", "")])
    if (episodes := s.value("charts/games")) is not None:
        fields.append([(human(episodes), NUMBER), (" episodes", "")])
    lines = [entry("return", fields, width)]
    if (elo := s.value("selfplay/elo")) is not None:
        lines.append(entry("self-play", _self_play(s, elo), width))
    prefix = "charts/episodic_return/"
    tasks = [(name.removeprefix(prefix), x) for name, x in s.numbers.items() if name.startswith(prefix)]
    if tasks:
        lines.append(entry("", [[(f"{task} ", ""), (f"{x:.4g}", NUMBER)] for task, x in tasks], width))
    return lines + chart([(steps, value) for steps, _, value in s.history], width, rows)


def _self_play(s: Snapshot, elo: float) -> list[Line]:
    """Rating, score against the pool, and opponents."""
    fields: list[Line] = [[("Elo ", ""), (f"{elo:.0f}", f"bold {GOOD}")]]
    if (score := s.value("selfplay/score")) is not None:
        fields.append([("score ", ""), (f"{score:.2f}", NUMBER)])
    if (best := s.value("selfplay/elo_best_opponent")) is not None:
        fields.append([("best opponent ", ""), (f"{best:.0f}", NUMBER)])
    fields.append([(f"{s.value('selfplay/pool') or 0:.0f}", NUMBER), (" opponents", "")])
    if (games := s.value("selfplay/games")) is not None:
        fields.append([(human(games), NUMBER), (" games", "")])
    return fields


def pipeline(s: Snapshot, width: int, bars: bool = True, stages: bool = True) -> list[Line]:
    """Busy (thick) and waiting (thin) time of each kind of worker, its stages, and the bottleneck."""
    busy, limit, busiest = busy_shares(s.numbers), bound(s.numbers), bottleneck(s.numbers)
    if not busy:
        return [entry("pipeline", [[("no stage times yet", DIM)]], width)]
    meaning = MEANING.get(limit, "each waits for the others")
    lines = [entry("pipeline", [[(limit, f"bold {WARN}")], [(meaning, DIM)]], width)]
    room = width - LABEL - 5
    size = min(room // 2, max(14, room - STAGES_WIDTH)) if stages and room >= 38 else max(room, 0)
    for kind in busy if bars else ():
        style = WARN if kind == busiest else ACCENT
        line = [*label(kind, style), *bar(busy[kind], size, style), (f" {100 * busy[kind]:3.0f}%", NUMBER)]
        lines.append([*line, (_stages(s, kind, room - size), DIM)])
    return lines


def _stages(s: Snapshot, kind: str, width: int) -> str:
    """Largest stages of one kind of worker, as many as fit."""
    shares = [(s.value(f"stage/{kind}/{stage}") or 0.0, stage) for stage in STAGES[kind] if stage != "wait"]
    text = ""
    for share, stage in sorted(shares, reverse=True):
        longer = f"{text} · {stage} {100 * share:.0f}%" if text else f"  {stage} {100 * share:.0f}%"
        if share < 0.005 or len(longer) > width:
            break
        text = longer
    return text


def queue(s: Snapshot, width: int) -> list[Line]:
    """Slots that are full, in use and free, and the mean waits of the workers."""
    ready, free = s.value("queue/ready"), s.value("queue/free")
    slots: list[Line] = []
    if ready is not None and free is not None:
        in_use = max(0, s.slots - int(ready) - int(free))
        counts = [(f"{ready:.0f}", WARN), (" full  ", ""), (f"{in_use}", ACCENT), (" in use  ", "")]
        slots.append([*counts, (f"{free:.0f}", NUMBER), (" free", "")])
        if 0 < s.slots <= MAX_SQUARES and width >= 60:
            slots.insert(0, [("■" * int(ready), WARN), ("■" * in_use, ACCENT), ("□" * int(free), DIM)])
    if (batch := s.value("queue/inference_batch")) is not None:
        rows = "rows" if step_words(s.numbers)[1] else "envs"
        slots.append([(f"{batch:.0f}", NUMBER), (f" {rows}/forward", "")])
    waits: list[Line] = [
        [(f"{kind} ", ""), (f"{wait:.3g} ms", NUMBER)]
        for kind in STAGES
        if (wait := s.value(f"queue/{kind}_wait_ms")) is not None
    ]
    return [entry(name, block, width) for name, block in (("slots", slots), ("mean wait", waits)) if block]


def staleness(s: Snapshot, width: int) -> list[Line]:
    """Policy lag, replayed steps, effective sample size, and KL divergence."""
    lines: list[Line] = []
    if (mean := s.value("lag/mean")) is not None:
        fields: list[Line] = [[(f"{mean:.1f}", NUMBER), (" updates", "")]]
        for name in ("p95", "max"):
            if (value := s.value(f"lag/{name}")) is not None:
                fields.append([(f"{name} ", ""), (f"{value:.0f}", NUMBER)])
        if (seconds := s.value("lag/seconds")) is not None:
            fields.append([(f"{seconds:.2g} s", NUMBER)])
        lines.append(entry("lag", fields, width))
    if share := s.value("replay/share"):
        fields = [[(f"{100 * share:.0f}%", NUMBER)]]
        if (age := s.value("replay/age")) is not None:
            fields.append([("age ", ""), (f"{age:.1f}", NUMBER), (" updates", "")])
        if (size := s.value("replay/memory_mb")) is not None:
            fields.append([(f"{size:,.0f} MB", NUMBER)])
        lines.append(entry("replayed", fields, width))
    if (ess := s.value("offpolicy/ess")) is not None:
        style = GOOD if ess >= 0.5 else WARN if ess >= 0.2 else BAD
        fields = [[(f"{ess:.2f} ", style), *bar(ess, min(20, max(width - LABEL - 5, 0)), style)]]
        if (kl := s.value("offpolicy/kl_behavior_proximal")) is not None:
            fields.append([("KL behavior, proximal ", ""), (f"{kl:.2g}", NUMBER)])
        lines.append(entry("ESS", fields, width))
    return lines


def losses(s: Snapshot, width: int) -> list[Line]:
    """Losses and optimizer metrics, in two lines."""
    fields: list[Line] = [
        [(f"{word} ", ""), (f"{value:.3g}", NUMBER)]
        for word, name in LOSSES.items()
        if (value := s.value(name)) is not None
    ]
    half = (len(fields) + 1) // 2
    return [entry(name, part, width) for name, part in (("losses", fields[:half]), ("", fields[half:])) if part]


def health(s: Snapshot, width: int, machine: bool = True) -> list[Line]:
    """Faults, last checkpoint and load of the machine; in one line where they fit."""
    count = int(s.value("faults/total") or 0)
    faults: list[Line] = [[(f"{count}", BAD if count else NUMBER)]]
    if share := s.value("faults/broken_share"):
        faults.append([(percent(share), BAD), (" of episodes broken", "")])
    if skipped := s.value("faults/skipped_updates"):
        faults.append([(f"{skipped:.0f}", BAD), (" updates skipped", "")])
    saved: Line = [("none yet", DIM)]
    if s.checkpoint is not None:
        steps, age = s.checkpoint
        age += s.since if s.state == "running" else 0.0
        unit = step_words(s.numbers)[0]
        saved = [("at ", ""), (human(steps), NUMBER), (f" {unit}, ", ""), (duration(age), NUMBER), (" ago", "")]
    loads = {"CPU": s.value("system/cpu"), "memory": s.value("system/memory")} if machine else {}
    load: list[Line] = [[(f"{word} ", ""), (f"{x:.0f}%", NUMBER)] for word, x in loads.items() if x is not None]
    if width >= ONE_LINE:
        return [entry("faults", [*faults, [("checkpoint ", DIM), *saved], *load], width)]
    lines = [entry("faults", faults, width), entry("checkpoint", [saved], width)]
    return lines + ([entry("machine", load, width)] if load else [])


def one_line(s: Snapshot) -> Line:
    """The most important fields in one line, for terminals of a few lines."""
    sps, now = s.value("charts/SPS"), s.value("charts/episodic_return")
    if sps is None:
        return [("sfactory: starting", ACCENT)]
    done, left = remaining(s.numbers, s.stop, s.env_steps, s.seconds)
    words = [f"{human(sps)} {step_words(s.numbers)[0]}/s", "" if now is None else f"return {now:.4g}"]
    words += ["" if done is None else f"{100 * done:.0f}%"]
    words += ["" if left is None else f"{duration(max(0.0, left - s.since))} left", bound(s.numbers)]
    faults = int(s.value("faults/total") or 0)
    return [(f"faults {faults} · " if faults else "", BAD), (" · ".join(filter(None, words)), "")]
