"""The table of all metrics: name, meaning with unit, source and aggregation.

The same names are the columns of metrics.jsonl, the tags in TensorBoard and the words of the console. A name that is
not in the table raises KeyError. Returns and lengths are of complete, unclipped episodes; everything else is over valid
steps only and over the time since the previous row.

To add a metric of a worker: one entry here, and `self.record(name, value)` in the worker where it is measured.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

EPISODES_IN_MEAN = 100  # a training return is the mean of the last 100 episodes
MAX_INFOS = 40  # numbers of environments that are recorded, of all tasks together
EPISODES_IN_SHARE = 1000  # the share of broken episodes is that of the last 1,000 that ended

STAGES: dict[str, dict[str, str]] = {
    "sampler": {
        "wait": "waiting for actions or for a free slot",
        "env_step": "stepping environments and writing their results",
        "write": "starting slots: noise and first observations",
    },
    "inference": {
        "wait": "waiting for requests",
        "look": "reading requests and newer weights",
        "gather": "copying observations into one batch",
        "forward": "computing the forward pass and sampling actions",
        "answer": "writing actions into the slots",
    },
    "learner": {
        "wait": "waiting for full slots",
        "batch": "copying slots into the batch",
        "update": "computing forward and backward passes and optimizer steps",
        "publish": "publishing weights",
        "save": "writing checkpoints",
    },
}
"""Worker kind -> stage -> what the time is spent on."""

LAG_SHARES = {"0": "0", "1": "1", "2": "2", "4": "3 or 4", "8": "5 to 8", "16": "9 to 16", "more": "17 or more"}
"""Bins of the lag histogram: largest lag of the bin -> the lags of the bin in words."""

GROUPS = {
    "charts": "Return and speed",
    "info": "Numbers of the environment",
    "losses": "Losses and diagnostics of an update",
    "lag": "Policy lag",
    "replay": "Reuse of stale data",
    "offpolicy": "Distance between the policies",
    "proximal": "The averaged policy",
    "ppg": "The auxiliary phase",
    "pqn": "Action values",
    "queue": "Slots and waiting times",
    "stage": "Time per worker and stage",
    "ledger": "Discarded rows",
    "system": "The machine",
    "faults": "Faults",
    "eval": "Evaluation",
    "selfplay": "Self-play",
}
"""First part of a metric's name -> heading in the documentation."""

Source = Literal["sampler", "inference", "learner", "evaluator", "supervisor"]
Combine = Literal["mean", "sum", "max", "last"]


class Metric(NamedTuple):
    """One entry of the table."""

    meaning: str
    """With unit, in one line."""
    source: Source
    """Kind of worker that measures it; `supervisor`: computed from counters and messages when a row is made."""
    combine: Combine = "last"
    """How several values of one row become one: those of one worker over time, and those of all workers of the kind."""


def _metrics(source: Source, combine: Combine, entries: dict[str, str]) -> dict[str, Metric]:
    return {name: Metric(meaning, source, combine) for name, meaning in entries.items()}


_CHARTS = {
    "charts/episodic_return": "mean return of the last 100 episodes, unclipped",
    "charts/episodic_length": "mean length of the last 100 episodes, in steps; with several agents, of the environment",
    "charts/episodic_return_std": "standard deviation of the returns of these episodes",
    "charts/episodic_return_min": "lowest return of these episodes",
    "charts/episodic_return_max": "highest return of these episodes",
    "charts/episodic_return/<task>": "one of several tasks: mean return of its last 100 episodes, unclipped",
    "charts/episodic_return_std/<task>": "one of several tasks: standard deviation of these returns",
    "charts/episodic_return_min/<task>": "one of several tasks: lowest of these returns",
    "charts/episodic_return_max/<task>": "one of several tasks: highest of these returns",
    "charts/human_normalized": "return on the scale 0 = random policy, 1 = human tester; median over tasks, once all "
    "of them have it",
    "charts/human_normalized/<task>": "one of several tasks: its return on that scale",
    "charts/games": "complete episodes since the start of the run, over all launches",
    "charts/SPS": "trained steps per second; with several agents, agent steps",
    "charts/environment_SPS": "with several agents: env steps (of environments) per second; SPS counts agent steps",
    "charts/environment_steps": "with several agents: trained env steps (of environments) so far; env_steps "
    "counts agent steps",
    "charts/FPS": "frames per second: SPS times frame skip",
    "charts/frames": "frames trained so far: env_steps times frame skip",
    "charts/updates": "updates of the learner so far",
}
LAST_MINIBATCH = "in the last minibatch of an update"
_UPDATE = {
    "losses/policy_loss": "policy objective, as minimized",
    "losses/value_loss": "value loss before its coefficient: mean squared error, or cross-entropy in nats with "
    "model.value_head hl_gauss",
    "losses/value_outside": "model.value_head hl_gauss: fraction of the value targets outside model.value_low to "
    "model.value_high, which count as the nearest end",
    "losses/entropy": "mean entropy of the policy, in nats",
    "losses/q_loss": "algorithm.name pqn: half the mean squared error of the action values",
    "losses/q": "algorithm.name pqn: mean value of the actions that were taken",
    "losses/advantage": "algorithm.name dae: root mean square of the learned advantages under the policy at the start "
    "of the update, in units of the value head",
    "losses/approx_kl": "estimate of KL(proximal || policy), in nats",
    "losses/clipfrac": "fraction of steps whose ratio was clipped",
    "losses/maskfrac": "fraction of steps that surrogate.mask left out",
    "losses/dual": "r2vpo: coefficient of the variance of the ratio",
    "losses/bound_low": "bapo: lower bound of the ratio",
    "losses/bound_high": "bapo: upper bound of the ratio",
    "losses/explained_variance": "1 - var(target - value) / var(target); 1 is perfect, 0 is a constant",
    "losses/grad_norm": "norm of the gradient before clipping, mean over the optimizer steps that were taken",
    "offpolicy/kl_behavior_proximal": "KL(behavior || proximal), in nats: how stale the data is",
    "offpolicy/kl_proximal_policy": "KL(proximal || policy), in nats: how far the update moved the policy",
    "offpolicy/kl_of_update": "KL(policy before the update || policy after it), over the whole batch, in nats; with "
    "optim.schedule kl_adaptive, which reads it",
    "offpolicy/ess": "effective sample size of the weights, (sum w)^2 / (N sum w^2); 1 is on-policy",
    "offpolicy/rho_clip_fraction": "fraction of steps whose rho is above trace.rho_bar; gae does not clip it",
    "offpolicy/c_clip_fraction": "fraction of steps whose rho is above trace.c_bar; gae does not clip it",
    "offpolicy/effective_lambda": "mean trace coefficient",
    "offpolicy/discrepancy": "snapshot_age 0: mean |log prob in the learner - as stored when acting|, same weights",
}
OF_WHOLE_UPDATE = (
    "losses/value_outside", "losses/grad_norm", "offpolicy/effective_lambda", "offpolicy/kl_of_update",
)  # fmt: skip
"""Metrics of `_UPDATE` that cover a whole update. All others are measured in its last minibatch, where the policy has
moved furthest: in every minibatch they would make an update of the CartPole preset 2.3 times as long."""
_LAG = {
    "lag/mean": "updates between acting and learning, mean over steps",
    "lag/p95": "updates between acting and learning, 95th percentile",
    "lag/max": "updates between acting and learning, maximum",
    **{f"lag/share_{name}": f"fraction of steps whose lag in updates was {lags}" for name, lags in LAG_SHARES.items()},
    "lag/mean/<worker>": "updates between acting and learning, mean over the steps of one sampler",
    "lag/p95/<worker>": "updates between acting and learning, 95th percentile of one sampler's steps",
    "lag/max/<worker>": "updates between acting and learning, maximum of one sampler",
}
_REPLAY = {
    "replay/share": "fraction of the trained steps that had been trained on before",
    "replay/age": "updates since these steps were fresh, mean over steps",
    "replay/oldest": "the same, maximum",
    "replay/fresh_lag": "updates between acting and learning, mean over fresh steps; lag/mean is of all steps",
    "replay/largest_fresh_lag": "the same, maximum",
    "replay/held_slots": "slots that the learner holds, to train on them again",
    "replay/memory_mb": "memory of the held slots and of the batch with replayed rows, in MB",
    "replay/updates_without": "updates without replayed rows, because too few slots were held, since this launch "
    "(after an exact resume: since the start)",
}
_FAULTS = {
    "faults/total": "faults since this launch (after an exact resume: since the start), of workers and environments",
    "faults/sampler": "faults of samplers, including their environments",
    "faults/inference": "exits of inference workers",
    "faults/learner": "faults of the learner",
    "faults/evaluator": "exits of the evaluator",
    "faults/broken_episodes": "episodes cut because their environment failed, since this launch; no return has them",
    "faults/broken_share": "fraction of the last 1,000 episodes that were cut because their environment failed",
}
_EVALUATION = {
    "eval/episodic_return": "mean return of the newest evaluation since the previous row; mean over tasks",
    "eval/episodic_return/<task>": "one of several tasks: mean return of its episodes in the evaluation",
    "eval/episodic_length": "mean length of the evaluation's episodes, in steps; with several agents, of the "
    "environment",
    "eval/std": "standard deviation of the evaluation's returns; mean over tasks",
    "eval/min": "lowest of the evaluation's returns; mean over tasks",
    "eval/max": "highest of the evaluation's returns; mean over tasks",
    "eval/info/<name>": "a number that `info` has at the end of the evaluation's episodes, mean of those that have it",
    "eval/iqm": "interquartile mean of the evaluation's returns; mean over tasks",
    "eval/env_steps": "trained steps of the evaluated policy; TensorBoard shows eval/* at this step",
    "eval/capped": "episodes of the evaluation that were cut, where there are any: after 10,000 steps, in an "
    "environment without a limit of its own; they count with their return so far",
    "eval/seconds": "duration of the evaluation, in seconds",
}

_SELF_PLAY = {
    "selfplay/score": "mean score (win 1, draw 0.5) of the last selfplay.games games against opponents",
    "selfplay/score/<opponent>": "score against an opponent of selfplay.opponents, of all games",
    "selfplay/wins": "share of the last games that were won",
    "selfplay/draws": "share of the last games that were drawn",
    "selfplay/losses": "share of the last games that were lost",
    "selfplay/games": "complete games against opponents since the start of the run",
    "selfplay/elo": "Elo rating of the policy that learns, 1000 at the start, K = 16",
    "selfplay/elo_best_opponent": "highest Elo rating of the opponents in the pool",
    "selfplay/pool": "opponents in the pool",
}

METRICS: dict[str, Metric] = {
    **_metrics("supervisor", "last", _CHARTS),
    "info/<name>": Metric(
        "a number that `info` has at the end of episodes, mean of the last 100 that have it", "supervisor"
    ),
    "charts/learning_rate": Metric("learning rate of the optimizer", "learner"),
    "charts/entropy_coef": Metric("weight of the entropy bonus, where loss.entropy_final is set", "learner"),
    **_metrics(
        "learner",
        "mean",
        {name: text if name in OF_WHOLE_UPDATE else f"{text}; {LAST_MINIBATCH}" for name, text in _UPDATE.items()},
    ),
    "offpolicy/max_discrepancy": Metric(f"the largest of these differences; {LAST_MINIBATCH}", "learner", "max"),
    "offpolicy/max_abs_log_rho": Metric(
        "largest |log rho| at the start of an update; about 0 on policy", "learner", "max"
    ),
    **_metrics("learner", "last", _LAG),
    **_metrics("learner", "last", _REPLAY),
    "lag/seconds": Metric("lag/mean times the seconds an update takes", "supervisor"),
    "proximal/decay": Metric("decay of the averaged policy per optimizer step", "learner"),
    "ppg/auxiliary_loss": Metric(
        "half the mean squared error of the auxiliary value; last minibatch of a phase", "learner", "mean"
    ),
    "ppg/value_loss": Metric("half the mean squared error of the value; last minibatch of a phase", "learner", "mean"),
    "ppg/clone_kl": Metric(
        "KL(policy before the phase || policy), in nats; last minibatch of a phase", "learner", "mean"
    ),
    "ppg/kept_mb": Metric("memory of the batches that wait for the next phase, in MB", "learner"),
    "pqn/epsilon": Metric("share of random actions, published with the weights", "learner", "mean"),
    "queue/free": Metric("free slots when the row is written; 0 means that samplers wait for the learner", "learner"),
    "queue/ready": Metric("full slots that wait for the learner when the row is written", "learner"),
    "queue/inference_batch": Metric(
        "rows per forward pass of an inference worker: environments, or their agents", "inference", "mean"
    ),
    "queue/inference_wait_ms": Metric(
        "mean wait of an inference worker for a request, in milliseconds", "inference", "mean"
    ),
    "queue/learner_wait_ms": Metric("mean wait of the learner for its batch, in milliseconds", "learner", "mean"),
    "queue/sampler_wait_ms": Metric("mean wait of a sampler for actions or a slot, in milliseconds", "sampler", "mean"),
    "ledger/discarded": Metric("rows requested and never handed to the learner (of killed samplers)", "learner"),
    "system/save_stall_ms": Metric(
        "longest time an update waited for a checkpoint since the previous row, in milliseconds", "learner", "max"
    ),
    "system/cpu": Metric("CPU use of the machine, percent of all cores", "supervisor"),
    "system/memory": Metric("memory of the machine in use, percent", "supervisor"),
    **_metrics("supervisor", "last", _FAULTS),
    "faults/skipped_updates": Metric(
        "updates skipped since the start, wholly or in part, because of a non-finite loss or gradient", "learner"
    ),
    **_metrics("evaluator", "last", _EVALUATION),
    **_metrics("learner", "last", _SELF_PLAY),
    **{
        f"stage/{kind}/{stage}": Metric(f"fraction of the {kind}'s time spent {what}", kind, "sum")  # type: ignore[arg-type]
        for kind, stages in STAGES.items()
        for stage, what in stages.items()
    },
}
"""Name -> entry. `<worker>` stands for a worker's name, as sampler-3, `<task>` for a task, as atari/pong, `<name>` for
a name that an environment chose, `<opponent>` for a folder of `selfplay.opponents`."""

_WORKER = re.compile(r"/(sampler|inference|learner)(-\d+)?$")
_TASK = re.compile(r"^((?:charts|eval)/(?:episodic_return(?:_std|_min|_max)?|human_normalized))/.+$")
_INFO = re.compile(r"^(eval/)?info/.+$", re.DOTALL)
_OPPONENT = re.compile(r"^selfplay/score/.+$", re.DOTALL)


def find_metric(name: str) -> Metric:
    """Entry of a metric, also of one with a worker's or a task's name. KeyError if the table has none."""
    if found := _INFO.match(name):
        return METRICS[f"{found[1] or ''}info/<name>"]
    if _OPPONENT.match(name):
        return METRICS["selfplay/score/<opponent>"]
    for entry in (name, _WORKER.sub("/<worker>", name), _TASK.sub(r"\1/<task>", name)):
        if entry in METRICS:
            return METRICS[entry]
    raise KeyError(f"metric {name!r} is not in sfactory.monitor.table.METRICS; add it there with its meaning")


def meaning(name: str) -> str:
    """Meaning of a metric. KeyError if the table has no such name."""
    return find_metric(name).meaning


def worker_kind(worker: str) -> str:
    """sampler-3 -> sampler."""
    return worker.partition("-")[0]
