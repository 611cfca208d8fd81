"""Numbers, durations and one line of progress as text."""

from __future__ import annotations

from collections.abc import Container, Mapping

from sfactory.config import Stop
from sfactory.monitor.bottleneck import bound, busy_shares


def human(value: float) -> str:
    """12,345,678 -> 12.3M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """3,700 -> 1 h 01 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def percent(share: float) -> str:
    """0.3333 -> 33%, 0.0042 -> 0.42%."""
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"


def step_words(metrics: Container[str]) -> tuple[str, str]:
    """Names of what env_steps count, and of steps of environments; the second is empty where there is one agent.

    metrics: names in the newest row, or in all rows.
    """
    return ("agent steps", "env steps") if "charts/environment_steps" in metrics else ("steps", "")


def console_line(row: Mapping[str, float], stop: Stop, env_steps: float, seconds: float) -> str:
    """One line of progress: speed, return, lag, busy workers, fraction done, time left."""
    sps, fps = row.get("charts/SPS", 0.0), row.get("charts/FPS", 0.0)
    steps, others = step_words(row)
    done_too = f" ({human(row['charts/environment_steps'])} {others})" if others else ""
    speed_too = f" ({human(row.get('charts/environment_SPS', 0.0))} {others}/s)" if others else ""
    parts = [f"{human(env_steps)} {steps}{done_too}", f"{human(sps)} {steps}/s{speed_too}"]
    if abs(fps - sps) > 0.01 * sps:
        parts.append(f"{human(fps)} frames/s")
    if "charts/episodic_return" in row:
        parts.append(f"return {row['charts/episodic_return']:.4g}")
    if "lag/mean" in row:
        parts.append(f"lag {row['lag/mean']:.1f} (p95 {row.get('lag/p95', row['lag/mean']):.0f}) updates")
    busy = busy_shares(row)
    if busy:
        shares = (f"{kind} {100 * share:.0f}%" for kind, share in busy.items())
        parts.append(f"busy {' '.join(shares)} ({bound(row)})")
    if row.get("faults/total"):
        parts.append(f"faults {row['faults/total']:.0f}")
    if row.get("faults/broken_share"):
        parts.append(f"broken {percent(row['faults/broken_share'])} of episodes")
    done, left_s = remaining(row, stop, env_steps, seconds)
    if done is not None:
        parts.append(f"{100 * done:.0f}%" + (f", {duration(left_s)} left" if left_s is not None else ""))
    return " | ".join(parts)


def remaining(
    row: Mapping[str, float], stop: Stop, env_steps: float, seconds: float
) -> tuple[float | None, float | None]:
    """(fraction done, seconds left) of the stop rule that is reached first; None where unknown."""
    sps, fps = row.get("charts/SPS", 0.0), row.get("charts/FPS", 0.0)
    rules = [
        (stop.env_steps, env_steps, sps),
        (stop.frames, row.get("charts/frames", 0.0), fps),
        (stop.seconds, seconds, 1.0),
    ]
    ends = []
    for goal, now, rate in rules:
        if goal:
            left = max(goal - now, 0.0) / rate if rate > 0 else None
            ends.append((float("inf") if left is None else left, min(now / goal, 1.0), left))
    if not ends:
        return None, None
    _, done, left = min(ends, key=lambda end: (end[0], -end[1]))
    return done, left


def printable(text: str) -> str:
    r"""Text with everything escaped that a terminal would act on: control characters and marks of direction (`\x1b`).

    Line breaks and tabs stay. For text from files and environments, wherever it is printed.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
