"""Convert stage times of all workers to one timeline for https://ui.perfetto.dev or chrome://tracing.

With `run.profile` every worker records the end of each of its stages (`workers.worker.Stages`) on the monotonic clock
and appends them to `debug/<worker>.stages` once a second. A stage starts where the previous one ended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

SUFFIX = ".stages"


class Span(NamedTuple):
    """One stage of one worker, in seconds of the monotonic clock."""

    worker: str
    stage: str
    begin: float
    end: float


def read(folder: Path) -> list[Span]:
    """Read the spans of all workers from a debug folder; an incomplete last line is skipped."""
    spans = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        for line in path.read_text().splitlines():
            try:
                begin, marks = json.loads(line)
            except ValueError:
                continue
            for stage, end in marks:
                spans.append(Span(path.name.removesuffix(SUFFIX), stage, begin, end))
                begin = end
    return spans


def last(spans: list[Span], seconds: float) -> list[Span]:
    """Return the spans that ended within the last `seconds`."""
    if not spans:
        return []
    since = max(span.end for span in spans) - seconds
    return [span for span in spans if span.end >= since]


def trace_events(spans: list[Span]) -> dict[str, Any]:
    """Return the spans in the Trace Event Format: a process per worker, complete events, in microseconds."""
    workers = sorted({span.worker for span in spans}, key=_order)
    numbers = {worker: number for number, worker in enumerate(workers, 1)}
    origin = min((span.begin for span in spans), default=0.0)
    events: list[dict[str, Any]] = []
    for worker, number in numbers.items():
        events.append({"ph": "M", "name": "process_name", "pid": number, "args": {"name": worker}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": number, "args": {"sort_index": number}})
    for span in spans:
        ts, dur = 1e6 * (span.begin - origin), 1e6 * (span.end - span.begin)
        event = {"ph": "X", "name": span.stage, "cat": span.worker, "pid": numbers[span.worker], "tid": 1}
        events.append({**event, "ts": round(ts, 1), "dur": round(dur, 1)})
    return {"displayTimeUnit": "ms", "traceEvents": events}


def table(spans: list[Span]) -> str:
    """Format share of time, count, mean and longest duration per worker and stage."""
    lines = [f"{'':24} {'share':>6} {'count':>8} {'mean':>10} {'longest':>10}"]
    for worker in sorted({span.worker for span in spans}, key=_order):
        own = [span for span in spans if span.worker == worker]
        total = sum(span.end - span.begin for span in own)
        stages: dict[str, list[float]] = {}
        for span in own:
            stages.setdefault(span.stage, []).append(span.end - span.begin)
        lines.append(worker)
        for stage, times in sorted(stages.items(), key=lambda one: -sum(one[1])):
            share, mean = sum(times) / total, sum(times) / len(times)
            lines.append(f"  {stage:22} {share:6.1%} {len(times):8,} {1e3 * mean:7.3f} ms {1e3 * max(times):7.1f} ms")
    return "\n".join(lines)


def _order(worker: str) -> tuple[int, str, int]:
    """Sort key in the order of the data: samplers, inference, learner."""
    kind, _, number = worker.partition("-")
    return ("sampler", "inference", "learner").index(kind), kind, int(number or 0)
