"""The one table of metrics, and the board that makes rows of them from telemetry. Free of torch.

The same strings are the columns of metrics.jsonl, the tags in TensorBoard and the words of the console. A name
that is not in the table is an error: it would be a curve nobody can look up. Returns and lengths are of whole,
unclipped games; everything else is over valid steps only and over the time since the row before.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

GAMES = 100  # a training return is the mean of the last so many games

STAGES: dict[str, dict[str, str]] = {
    "sampler": {
        "wait": "waiting for actions or for a free slot",
        "env_step": "stepping environments and writing what they say",
        "write": "beginning slots: noise and first observations",
    },
    "inference": {
        "wait": "waiting for requests",
        "look": "looking for requests and newer weights",
        "gather": "copying observations side by side",
        "forward": "the forward pass and the choice of actions",
        "answer": "writing actions into the slots",
    },
    "learner": {
        "wait": "waiting for full slots",
        "batch": "copying slots into the batch",
        "update": "forward, backward and optimizer steps",
        "publish": "giving weights away",
        "save": "writing checkpoints",
    },
}
"""Worker kind -> stage -> what the time goes to."""

BOUND = {"sampler": "sampling-bound", "inference": "inference-bound", "learner": "learner-bound"}
SATURATED = 2 / 3  # share of its time a worker works from which on the others wait for it rather than each for each
LAG_SHARES = {"0": "0", "1": "1", "2": "2", "4": "3 or 4", "8": "5 to 8", "16": "9 to 16", "more": "17 or more"}
"""A histogram of lag, bin by bin: its largest lag (a bin begins where the one before ends) -> the same in words."""

METRICS: dict[str, str] = {
    "charts/episodic_return": "mean return of the last 100 whole games, unclipped",
    "charts/episodic_length": "mean length of the last 100 whole games, in steps",
    "charts/episodic_return/<task>": "one of several tasks: mean return of its last 100 whole games, unclipped",
    "charts/human_normalized": "return on the scale 0 = random policy, 1 = human tester; median over tasks",
    "charts/human_normalized/<task>": "one of several tasks: its return on that scale",
    "charts/games": "whole games finished in this launch; after an exact resume since the start",
    "charts/SPS": "trained agent steps per second",
    "charts/FPS": "environment frames per second: SPS times frame skip",
    "charts/frames": "environment frames trained so far",
    "charts/updates": "updates of the learner so far",
    "charts/learning_rate": "learning rate of the optimizer",
    "losses/policy_loss": "policy objective, as minimised",
    "losses/value_loss": "value loss before its coefficient",
    "losses/entropy": "mean entropy of the policy, in nats",
    "losses/approx_kl": "estimate of KL(proximal || policy), in nats",
    "losses/clipfrac": "fraction of steps whose ratio was clipped",
    "losses/explained_variance": "1 - var(target - value) / var(target); 1 is perfect, 0 is a constant",
    "losses/grad_norm": "norm of the gradient before clipping",
    "lag/mean": "updates between acting and learning, mean over steps",
    "lag/p95": "updates between acting and learning, 95th percentile",
    "lag/max": "updates between acting and learning, worst step",
    "lag/seconds": "lag/mean times the seconds an update takes",
    **{f"lag/share_{name}": f"share of steps whose lag was {said} updates" for name, said in LAG_SHARES.items()},
    "lag/mean/<worker>": "updates between acting and learning, mean over the steps of one sampler",
    "lag/p95/<worker>": "updates between acting and learning, 95th percentile of one sampler's steps",
    "lag/max/<worker>": "updates between acting and learning, worst step of one sampler",
    "offpolicy/kl_behavior_proximal": "KL(behavior || proximal): how stale the data is, in nats",
    "offpolicy/kl_proximal_policy": "KL(proximal || policy): how far an update went, in nats",
    "offpolicy/ess": "effective sample size of the weights, (sum w)^2 / (N sum w^2); 1 is on-policy",
    "offpolicy/rho_clip_fraction": "fraction of steps whose rho is clipped",
    "offpolicy/c_clip_fraction": "fraction of steps whose trace coefficient is clipped",
    "offpolicy/effective_lambda": "mean trace coefficient: how far credit really reaches",
    "offpolicy/max_abs_log_rho": "largest |log rho| at the start of an update; about 0 on policy",
    "offpolicy/discrepancy": "snapshot_age 0: mean |log prob in the learner - as stored when acting|, same weights",
    "offpolicy/max_discrepancy": "snapshot_age 0: the largest of these differences in a minibatch",
    "proximal/decay": "decay of the averaged policy per optimizer step",
    "queue/free": "slots nobody holds; 0 means samplers wait for the learner",
    "queue/ready": "full slots that wait for the learner",
    "queue/inference_batch": "environments per forward pass of the inference worker",
    "queue/inference_wait_ms": "mean wait of the inference worker for a request, in milliseconds",
    "queue/learner_wait_ms": "mean wait of the learner for its batch, in milliseconds",
    "queue/sampler_wait_ms": "mean wait of a sampler for actions or a slot, in milliseconds",
    "ledger/discarded": "rows asked for and never handed to the learner (a killed sampler's)",
    "system/save_stall_ms": "longest time an update waited for a checkpoint since the row before, in milliseconds",
    "system/cpu": "busy CPU time of the machine, percent of all cores",
    "system/memory": "memory of the machine in use, percent",
    "faults/total": "faults so far in this launch (after an exact resume: of all), of workers and environments",
    "faults/sampler": "faults reported by or about samplers, their environments included",
    "faults/inference": "deaths of the inference worker",
    "faults/learner": "faults of the learner",
    "faults/evaluator": "deaths of the evaluator",
    "faults/skipped_updates": "updates skipped since the start for a loss or gradient that was not finite",
    "eval/episodic_return": "mean return of the newest evaluation since the row before; of several tasks, their mean",
    "eval/episodic_return/<task>": "one of several tasks: mean return of its games in the evaluation",
    "eval/episodic_length": "mean length of the evaluation's games, in steps",
    "eval/iqm": "interquartile mean of the evaluation's returns; of several tasks, their mean",
    "eval/env_steps": "trained steps of the policy that was evaluated; TensorBoard shows eval/* at this step",
    "eval/seconds": "how long the evaluation took, in seconds",
    **{
        f"stage/{kind}/{stage}": f"share of the {kind}'s time spent {what}"
        for kind, stages in STAGES.items()
        for stage, what in stages.items()
    },
}
"""Name -> meaning with unit. `<worker>` stands for a worker's name, as sampler-3, `<task>` for one as atari/pong."""

_WORKER = re.compile(r"/(sampler|inference|learner)(-\d+)?$")
_TASK = re.compile(r"^((?:charts|eval)/(?:episodic_return|human_normalized))/.+$")


def meaning(name: str) -> str:
    """What a metric says. KeyError with a sentence for a name that is not in the table."""
    for entry in (name, _WORKER.sub("/<worker>", name), _TASK.sub(r"\1/<task>", name)):
        if entry in METRICS:
            return METRICS[entry]
    raise KeyError(f"metric {name!r} is not in sfactory.monitor.metrics.METRICS; add it there with its meaning")


def kind_of(worker: str) -> str:
    """sampler-3 -> sampler."""
    return worker.partition("-")[0]


class Stop(Protocol):
    """The stop rules progress is measured by; `config.Stop` is one."""

    @property
    def env_steps(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def seconds(self) -> float: ...


class Board:
    """Aggregates telemetry into rows. Deterministic: no clock but the seconds it is given.

    `env_steps` and `seconds` are where a resumed run begins; without them its first row would say the mean speed
    of all launches. `tasks`: name -> returns of a random policy and of a human, or None.
    """

    def __init__(
        self, env_steps: int = 0, seconds: float = 0.0, tasks: Mapping[str, tuple[float, float] | None] | None = None
    ) -> None:
        self._tasks = dict(tasks or {"": None})
        self._returns: list[deque[float]] = [deque(maxlen=GAMES) for _ in self._tasks]  # by task
        self._lengths: deque[int] = deque(maxlen=GAMES)
        self.games = 0
        self._learner: dict[str, float] = {}
        self._stages: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._turns: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._faults: dict[str, int] = defaultdict(int)
        self.evaluated = 0  # trained steps of the policy that was evaluated last
        self._eval: dict[str, float] = {}  # what it reached, until a row tells
        self._steps_before, self._seconds_before = env_steps, seconds
        self._updates_before = -1
        self._speed: dict[str, float] = {}
        self._now = (env_steps, seconds)

    @property
    def training_return(self) -> float | None:
        """Mean of the last 100 whole games (of `games`, while there are fewer); None before the first.

        Of several tasks: the mean of theirs, so that short games do not outvote long ones.
        """
        known = [np.mean(returns) for returns in self._returns if returns]
        return float(np.mean(known)) if known else None

    @property
    def settled(self) -> bool:
        """Every task has as many games as its training return is made of."""
        return all(len(returns) == GAMES for returns in self._returns)

    def handle(self, message: tuple[str, str, Any]) -> None:
        """One message of telemetry: (kind, worker, payload)."""
        kind, worker, payload = message
        if kind == "episodes":
            self.games += len(payload)
            for episodic_return, length, task in payload:
                self._returns[task].append(float(episodic_return))
                self._lengths.append(int(length))
        elif kind == "learner":
            for name in payload:
                meaning(name)
            self._learner.update(payload)
        elif kind == "stages":
            for stage, seconds in payload.items():
                meaning(f"stage/{kind_of(worker)}/{stage}")
                self._stages[kind_of(worker)][stage] += seconds
        elif kind == "turns":
            for name in ("turns", "envs"):
                self._turns[kind_of(worker)][name] += payload[name]
        elif kind == "fault":
            self._faults[kind_of(worker)] += 1
        elif kind == "eval":
            self._eval, self.evaluated = dict(payload), int(payload["eval/env_steps"])
        elif kind != "log":
            raise KeyError(f"telemetry {kind!r} of {worker}: not one of the kinds above")

    def state(self) -> dict[str, Any]:
        """What later rows depend on, speeds aside: games, the learner's last numbers, faults."""
        games = [[list(returns) for returns in self._returns], list(self._lengths), self.games]
        evaluation = [self.evaluated, dict(self._eval)]
        return {"games": games, "learner": dict(self._learner), "faults": dict(self._faults), "eval": evaluation}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """The inverse."""
        returns, lengths, self.games = state["games"]
        for own, saved in zip(self._returns, returns, strict=True):
            own.extend(saved)
        self._lengths.extend(lengths)
        self._learner.update(state["learner"])
        self._faults.update(state["faults"])
        self.evaluated, self._eval = state.get("eval", [0, {}])

    def snapshot(self, env_steps: int, frames: int, updates: int, seconds: float) -> dict[str, float]:
        """One row, and the beginning of the next window. `seconds` of training, over all launches."""
        row = {**self._learner, "charts/frames": float(frames), "charts/updates": float(updates)}
        row |= self._speeds(env_steps, frames, updates, seconds)
        row |= self._scores()
        row["charts/games"] = float(self.games)
        if "lag/mean" in row and "update_s" in self._speed:
            row["lag/seconds"] = row["lag/mean"] * self._speed["update_s"]
        row["faults/total"] = float(sum(self._faults.values()))
        row |= {f"faults/{kind}": float(count) for kind, count in self._faults.items()}
        for kind, stages in self._stages.items():
            total = sum(stages.values())
            turns = self._turns[kind]
            if turns["turns"]:
                row[f"queue/{kind}_wait_ms"] = 1000.0 * stages.get("wait", 0.0) / turns["turns"]
                if turns["envs"]:
                    row["queue/inference_batch"] = turns["envs"] / turns["turns"]
            if total > 0:
                names = {**dict.fromkeys(STAGES.get(kind, ()), 0.0), **stages}  # a mean over rows needs the zeros too
                row |= {f"stage/{kind}/{stage}": spent / total for stage, spent in names.items()}
        self._stages.clear()
        self._turns.clear()
        row |= self._eval  # in one row alone: a curve has a point where there was an evaluation
        self._eval = {}
        for name in row:
            meaning(name)
        self._now = (env_steps, seconds)
        return row

    def _scores(self) -> dict[str, float]:
        """Returns of the last games, of every task where there are several; relative to a human where one played."""
        if self.training_return is None:
            return {}
        row = {"charts/episodic_return": self.training_return, "charts/episodic_length": float(np.mean(self._lengths))}
        normalized = {}
        for (task, reference), returns in zip(self._tasks.items(), self._returns, strict=True):
            if not returns:
                continue
            mean = float(np.mean(returns))
            if len(self._tasks) > 1:
                row[f"charts/episodic_return/{task}"] = mean
            if reference is not None:
                normalized[f"charts/human_normalized/{task}"] = human_normalized(mean, reference)
        if normalized:
            row["charts/human_normalized"] = float(np.median(list(normalized.values())))
            row |= normalized if len(self._tasks) > 1 else {}
        return row

    def console_line(self, snapshot: Mapping[str, float], stop: Stop) -> str:
        """One line of progress for the newest row."""
        return console_line(snapshot, stop, *self._now)

    def _speeds(self, env_steps: int, frames: int, updates: int, seconds: float) -> dict[str, float]:
        """Rates over the window; the last ones again if no time has passed."""
        window = seconds - self._seconds_before
        if window > 0:
            steps = env_steps - self._steps_before
            sps = steps / window
            self._speed = {"charts/SPS": sps, "charts/FPS": sps * (frames / env_steps if env_steps else 1.0)}
            if self._updates_before >= 0 and updates > self._updates_before:
                self._speed["update_s"] = window / (updates - self._updates_before)
            self._steps_before, self._seconds_before, self._updates_before = env_steps, seconds, updates
        return {name: value for name, value in self._speed.items() if name.startswith("charts/")}


def human_normalized(score: float, reference: tuple[float, float]) -> float:
    """0 where a random policy plays, 1 where the human tester did. reference: returns of both."""
    random, human = reference
    return (score - random) / (human - random)


def lag_row(lags: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    """Mean, 95th percentile and worst lag of all steps, and of every worker's; shares of the histogram's bins.

    lags: worker -> arrays of updates.
    """
    each = {f"/{worker}": np.concatenate(arrays) for worker, arrays in lags.items() if arrays}
    found = {"": np.concatenate(list(each.values())), **each} if each else {}
    row: dict[str, float] = {}
    for end, values in found.items():
        if len(values):
            row |= {f"lag/mean{end}": float(values.mean()), f"lag/p95{end}": float(np.percentile(values, 95))}
            row[f"lag/max{end}"] = float(values.max())
    if found and len(found[""]):
        edges = [int(name) for name in LAG_SHARES if name.isdigit()]
        counts = np.bincount(np.searchsorted(edges, found[""]), minlength=len(LAG_SHARES))
        row |= {f"lag/share_{name}": float(n / counts.sum()) for name, n in zip(LAG_SHARES, counts, strict=True)}
    return row


# -- one line of progress ------------------------------------------------------------------------------------


def busy_shares(row: Mapping[str, float]) -> dict[str, float]:
    """Worker kind -> share of its time it does not wait; only kinds that have reported."""
    known = {name.split("/")[1] for name in row if name.startswith("stage/")}
    return {kind: 1.0 - row.get(f"stage/{kind}/wait", 0.0) for kind in STAGES if kind in known}


def bottleneck(row: Mapping[str, float]) -> str:
    """The kind of worker that waits least: the others wait for it. Empty before stages are known."""
    busy = busy_shares(row)
    return max(busy, key=lambda kind: busy[kind]) if busy else ""


def bound(row: Mapping[str, float]) -> str:
    """The bottleneck in one word, as learner-bound; empty before stages are known.

    A pipeline has a bottleneck if somebody works nearly all the time. If nobody does, the workers take turns (lockstep,
    one slot per group, one group per sampler): then all of them count, the busiest most.
    """
    kind = bottleneck(row)
    if not kind or busy_shares(row)[kind] >= SATURATED:
        return BOUND.get(kind, "")
    return f"in turns, mostly {kind}"


def console_line(row: Mapping[str, float], stop: Stop, env_steps: float, seconds: float) -> str:
    """Progress for people: speed, return, lag, who is busy, how far, how long still."""
    sps, fps = row.get("charts/SPS", 0.0), row.get("charts/FPS", 0.0)
    parts = [f"{human(env_steps)} steps", f"{human(sps)} steps/s"]
    if abs(fps - sps) > 0.01 * sps:
        parts.append(f"{human(fps)} frames/s")
    if "charts/episodic_return" in row:
        parts.append(f"return {row['charts/episodic_return']:.4g}")
    if "lag/mean" in row:
        parts.append(f"lag {row['lag/mean']:.1f} (p95 {row.get('lag/p95', row['lag/mean']):.0f}) updates")
    busy = busy_shares(row)
    if busy:
        words = (f"{kind} {100 * share:.0f}%" for kind, share in busy.items())
        parts.append(f"busy {' '.join(words)} ({bound(row)})")
    if row.get("faults/total"):
        parts.append(f"faults {row['faults/total']:.0f}")
    done, left_s = remaining(row, stop, env_steps, seconds)
    if done is not None:
        parts.append(f"{100 * done:.0f}%" + (f", {duration(left_s)} left" if left_s is not None else ""))
    return " | ".join(parts)


def remaining(
    row: Mapping[str, float], stop: Stop, env_steps: float, seconds: float
) -> tuple[float | None, float | None]:
    """(fraction done, seconds left) of the stop rule that comes first; None where it cannot be said."""
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


def human(value: float) -> str:
    """12,345,678 -> 12.3M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """3,700 -> 1 h 01 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
