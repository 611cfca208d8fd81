"""Tell once how long the first update will take, if that is long: until then a run shows no numbers."""

from __future__ import annotations

from sfactory.workers.names import sampler_name
from sfactory.workers.shared import Phase, RunSpec, SharedState, heartbeat_phase

MEASURE_S = 5.0  # of stepping, before a rate is trusted
MEASURE_STEPS = 10
WARM_UP_S = 15.0  # the first actions and steps of a process take longer: what was measured sooner is measured again
LONGEST_S = 30.0  # after which fewer steps are enough
REPORT_S = 60.0


class FirstUpdate:
    """Measures the first environment steps of a run."""

    def __init__(self, run_spec: RunSpec, shared: SharedState) -> None:
        self.run_spec, self.shared = run_spec, shared
        self.done = False
        self._begun: tuple[float, int] | None = None  # time and steps when the measurement began
        self._first = 0.0  # time when the first step was seen

    def line(self, now: float) -> str:
        """The line to report, the first time it is known; otherwise an empty string."""
        if self.done:
            return ""
        counts = self.shared.slot_table.row_counts()
        if counts.trained or counts.skipped or counts.sampled >= self.run_spec.batch_rows:
            self.done = True  # the batch of the first update is complete; other ranks may still fill theirs
            return ""
        if not counts.sampled:
            return ""
        steps = counts.sampled + self._within_groups()
        if self._begun is None:
            self._begun, self._first = (now, steps), now
        seconds, new = now - self._begun[0], steps - self._begun[1]
        if seconds < MEASURE_S or new < (MEASURE_STEPS if seconds < LONGEST_S else 1):
            return ""
        if now - self._first < WARM_UP_S:
            self._begun = now, steps
            return ""
        self.done = True
        unit = "agent steps" if self.run_spec.spec.agents else "environment steps"
        return first_update_line(self.run_spec.batch_rows, new / seconds, unit, seconds)

    def _within_groups(self) -> int:
        """Environment steps of group steps that are not complete."""
        steps = 0
        for sampler, (_, env) in enumerate(self.shared.arena["position"].tolist()):
            row = self.run_spec.workers.index(sampler_name(sampler))
            if env > 0 and heartbeat_phase(self.shared.heartbeat[row]) == Phase.ENVIRONMENT:
                steps += env * self.run_spec.spec.rows
        return steps


def first_update_line(rows: int, rate: float, unit: str = "environment steps", measured_s: float = MEASURE_S) -> str:
    """The line for an update of so many rows at so many steps per second; empty if it takes less than a minute.

    measured_s: seconds over which the rate was measured. On a busy machine it may become another one.
    """
    seconds = rows / rate
    if seconds <= REPORT_S:
        return ""
    return (
        f"the first update will take about {_duration(seconds)} if the speed stays as it is: it needs {rows:,} {unit}, "
        f"and there were {rate:.3g} per second in the last {measured_s:.0f} s; fewer: sampling.rollout-length, "
        "sampling.envs-per-group"
    )


def _duration(seconds: float) -> str:
    """Seconds in words, rounded."""
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} hours"
