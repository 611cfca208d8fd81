"""Time limits of a lockstep run: the same as `deadlines.py`, for all workers in one process."""

from __future__ import annotations

from dataclasses import dataclass

from sfactory.supervisor.deadlines import START_S, Deadlines
from sfactory.supervisor.lockstep_link import Inside
from sfactory.workers.names import sampler_name
from sfactory.workers.shared import Phase, RunSpec, SharedState


@dataclass
class WatchedSampler:
    """One of the samplers in the process, as `Deadlines` sees it."""

    name: str
    heartbeat: tuple[int, int]
    heartbeat_at: float = 0.0
    beats: bool = False
    began_at: float = 0.0
    ready: bool = False


class LockstepClock:
    """What the process does and since when. Times are seconds on the parent's clock."""

    def __init__(self, run_spec: RunSpec, shared: SharedState) -> None:
        self.deadlines = Deadlines(run_spec, shared)
        names = map(sampler_name, range(run_spec.config.sampling.samplers))
        self.samplers = [WatchedSampler(name, self.deadlines.heartbeat(name)) for name in names]
        self.begun = False
        self._before = self.heartbeats()  # those that say nothing about what the process does now
        self._inside: Inside | None = None
        self._inside_since = 0.0

    def heartbeats(self) -> list[tuple[int, int]]:
        """The newest heartbeats of all samplers."""
        return [self.deadlines.heartbeat(sampler.name) for sampler in self.samplers]

    def begin(self) -> None:
        """All environments are built, although each sampler says that it builds them until its first step."""
        self.begun, self._before = True, self.heartbeats()

    def inside(self, inside: Inside | None, now: float) -> None:
        """Note that environments run outside of the samplers; None: no longer."""
        self._inside, self._inside_since = inside, now

    def where(self) -> str:
        """Which environments run now, for messages; empty if none does."""
        if self._inside:
            return f", {self._inside.where}"
        sampler = self._current()
        return self.deadlines.position(sampler.name) if sampler else ""

    def exceeded(self, now: float) -> str:
        """The time limit that an environment has exceeded; empty if none has. Call it every tick."""
        if (inside := self._inside) is not None:
            late = now - self._inside_since > inside.seconds
            return f"{inside.what} exceeded {inside.seconds:g} s ({inside.setting}, {inside.where})" if late else ""
        sampler = self._current()
        return self.deadlines.exceeded(sampler, now) if sampler else ""

    def stalled(self, now: float) -> bool:
        """Whether nothing has arrived for `run.stall_timeout`. Environments and loading have limits of their own."""
        if self._inside or self._current() or (not self.begun and now < START_S):
            self.deadlines.arrived_at = now
            return False
        return self.deadlines.stalled([], now)

    def _current(self) -> WatchedSampler | None:
        """The sampler whose environments run now. They are built in the order of the samplers."""
        current = None
        for sampler, before in zip(self.samplers, self._before, strict=True):
            inside = self.deadlines.phase(sampler.name) in (Phase.ENVIRONMENT, Phase.BUILD)
            if inside and self.deadlines.heartbeat(sampler.name) != before:
                current = sampler
        return current
