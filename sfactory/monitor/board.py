"""Aggregate telemetry into rows of metrics. Free of torch."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from sfactory.config import Stop
from sfactory.monitor import messages
from sfactory.monitor.accumulator import Accumulator
from sfactory.monitor.episodes import Episodes
from sfactory.monitor.format import console_line
from sfactory.monitor.messages import Message
from sfactory.monitor.statistics import human_normalized, spread
from sfactory.monitor.table import (
    EPISODES_IN_MEAN,
    EPISODES_IN_SHARE,
    MAX_INFOS,
    METRICS,
    STAGES,
    find_metric,
    worker_kind,
)


class Board:
    """Aggregates telemetry into rows. Deterministic: the only clock is the seconds passed to `snapshot`.

    env_steps, seconds, environment_steps: where a resumed run starts, so that the first row has the speed of this
    launch only; the last one where there are several agents and the checkpoint has it.
    tasks: name -> (return of a random policy, return of a human), or None where unknown.
    episodes: those of the checkpoint that a run is resumed from.
    """

    def __init__(
        self,
        env_steps: int = 0,
        seconds: float = 0.0,
        tasks: Mapping[str, tuple[float, float] | None] | None = None,
        episodes: Episodes | None = None,
        environment_steps: int | None = None,
    ) -> None:
        self._tasks = dict(tasks or {"": None})
        self.episodes = episodes or Episodes(len(self._tasks))
        self.num_broken = 0
        self._ends: deque[bool] = deque(maxlen=EPISODES_IN_SHARE)  # whether an episode was cut by a failure
        self.infos: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=EPISODES_IN_MEAN))  # of the last ones
        self._learner: dict[str, float] = {}  # kept from row to row
        self._recorded = Accumulator()
        self._stages: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))  # kind -> stage -> seconds
        self._faults: dict[str, int] = defaultdict(int)
        self.evaluated = 0  # trained steps of the policy that was evaluated last
        self._evaluations: list[dict[str, float]] = []  # results that no row has shown yet, oldest first
        self._steps_before, self._seconds_before = env_steps, seconds
        self._environment_steps_before: float | None = environment_steps
        self._updates_before = -1
        self._speed: dict[str, float] = {}
        self._update_seconds: float | None = None
        self._now = (env_steps, seconds)

    def handle(self, message: Message) -> None:
        """Aggregate one message. KeyError for an unknown kind, metric or stage."""
        kind, worker, payload = message
        if kind == messages.EPISODES:
            self.episodes.add(payload)
            self._ends.extend([False] * len(payload))
            for name, value in (item for episode in payload for numbers in episode[3:] for item in numbers.items()):
                if name in self.infos or len(self.infos) < MAX_INFOS:
                    self.infos[name].append(value)
        elif kind == messages.STEPS:
            _, broken = payload
            self.num_broken += broken
            self._ends.extend([True] * broken)
        elif kind == messages.METRICS:
            for name in payload:
                if METRICS[name].source != worker_kind(worker):
                    raise KeyError(f"metric {name!r} is of the {METRICS[name].source}; {worker} sent it")
            self._recorded.merge(payload)
        elif kind == messages.LEARNER:
            for name in payload:
                find_metric(name)
            self._learner.update(payload)
        elif kind == messages.STAGES:
            for stage, seconds in payload.items():
                find_metric(f"stage/{worker_kind(worker)}/{stage}")
                self._stages[worker_kind(worker)][stage] += seconds
        elif kind == messages.FAULT:
            self._faults[worker_kind(worker)] += 1
        elif kind == messages.EVALUATION:
            self._evaluations.append(dict(payload))
            self.evaluated = int(payload["eval/env_steps"])
        elif kind == messages.NO_EVALUATION:
            self.evaluated = int(payload[0])
        elif kind != messages.LOG:
            raise KeyError(f"unknown telemetry message {kind!r} of {worker}; kinds are in sfactory.monitor.messages")

    def take_evaluations(self, keep: int) -> list[dict[str, float]]:
        """Return and forget the results that no row has shown yet, oldest first, but the newest `keep`."""
        taken = self._evaluations[: len(self._evaluations) - keep]
        del self._evaluations[: len(taken)]
        return taken

    def state(self) -> dict[str, Any]:
        """What later rows depend on, except speeds: episodes, the learner's last metrics, faults, evaluation."""
        e = self.episodes.state()
        evaluation = [self.evaluated, [dict(one) for one in self._evaluations]]
        return {
            "games": [e["returns"], e["lengths"], e["count"]],
            "learner": dict(self._learner),
            "faults": dict(self._faults),
            "eval": evaluation,
            "broken": [self.num_broken, list(self._ends)],
            "infos": {name: list(values) for name, values in self.infos.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        returns, lengths, count = state["games"]
        self.episodes.set_state({"returns": returns, "lengths": lengths, "count": count, "complete": True})
        self._learner.update(state["learner"])
        self._faults.update(state["faults"])
        self.evaluated, waiting = state.get("eval", [0, []])
        self._evaluations = [waiting] if isinstance(waiting, dict) and waiting else list(waiting)  # once a single one
        self.num_broken, ends = state.get("broken", [0, []])
        self._ends.extend(ends)
        for name, values in state.get("infos", {}).items():
            self.infos[name].extend(values)

    def snapshot(
        self, env_steps: int, frames: int, updates: int, seconds: float, episodes: Episodes | None = None
    ) -> dict[str, float]:
        """Make one row and start the next window.

        seconds: of training, over all launches. episodes: of this row, by default the newest.
        """
        row = {**self._learner, "charts/frames": float(frames), "charts/updates": float(updates)}
        row |= self._speeds(env_steps, frames, updates, seconds)
        row |= self._scores(episodes or self.episodes)
        row["charts/games"] = float((episodes or self.episodes).count)
        if "lag/mean" in row and self._update_seconds is not None:
            row["lag/seconds"] = row["lag/mean"] * self._update_seconds
        row["faults/total"] = float(sum(self._faults.values()))
        row |= {f"faults/{kind}": float(count) for kind, count in self._faults.items()}
        row["faults/broken_episodes"] = float(self.num_broken)
        if self._ends:
            row["faults/broken_share"] = float(np.mean(self._ends))
        row |= {f"info/{name}": float(np.mean(values)) for name, values in self.infos.items()}
        row |= self._recorded.drain_row()
        row |= self._stage_shares()
        if self._evaluations:  # in one row only: a curve has a point where there was an evaluation
            row |= self._evaluations.pop()
        for name in row:
            find_metric(name)
        self._now = (env_steps, seconds)
        return row

    def _stage_shares(self) -> dict[str, float]:
        """Fraction of the time per stage, of all workers of a kind together, since the previous row."""
        row: dict[str, float] = {}
        for kind, stages in self._stages.items():
            total = sum(stages.values())
            if total > 0:
                # Stages without time are 0, not missing: a mean over rows needs them.
                seconds = {**dict.fromkeys(STAGES.get(kind, ()), 0.0), **stages}
                row |= {f"stage/{kind}/{stage}": spent / total for stage, spent in seconds.items()}
        self._stages.clear()
        return row

    def _scores(self, episodes: Episodes) -> dict[str, float]:
        """Returns of the last episodes, per task where there are several, and human-normalized where known."""
        if episodes.training_return is None:
            return {}
        length = float(np.mean(episodes.lengths))
        row = {"charts/episodic_return": episodes.training_return, "charts/episodic_length": length}
        normalized = {}
        several = len(self._tasks) > 1
        for (task, reference), returns in zip(self._tasks.items(), episodes.returns, strict=True):
            if not returns:
                continue
            mean = float(np.mean(returns))
            if several:
                row[f"charts/episodic_return/{task}"] = mean
            for name, value in spread(returns).items():
                row[f"charts/episodic_return_{name}" + (f"/{task}" if several else "")] = value
            if reference is not None:
                normalized[f"charts/human_normalized/{task}"] = human_normalized(mean, reference)
        if len(normalized) == len(self._tasks):  # of some of the tasks it would be the score of something else
            row["charts/human_normalized"] = float(np.median(list(normalized.values())))
        row |= normalized if several else {}
        return row

    def console_line(self, row: Mapping[str, float], stop: Stop) -> str:
        """One line of progress for the newest row."""
        return console_line(row, stop, *self._now)

    def _speeds(self, env_steps: int, frames: int, updates: int, seconds: float) -> dict[str, float]:
        """Rates since the previous row; the previous rates if no time has passed."""
        window = seconds - self._seconds_before
        if window > 0:
            sps = (env_steps - self._steps_before) / window
            self._speed = {"charts/SPS": sps, "charts/FPS": sps * (frames / env_steps if env_steps else 1.0)}
            advanced = self._updates_before >= 0 and updates > self._updates_before
            self._update_seconds = window / (updates - self._updates_before) if advanced else None
            self._speed |= self._environment_speed(window)
            self._steps_before, self._seconds_before, self._updates_before = env_steps, seconds, updates
        return self._speed

    def _environment_speed(self, window: float) -> dict[str, float]:
        """Steps of environments per second, where there are several agents. window: seconds since the previous row."""
        steps = self._learner.get("charts/environment_steps")
        before, self._environment_steps_before = self._environment_steps_before, steps
        return {} if steps is None or before is None else {"charts/environment_SPS": (steps - before) / window}
