"""What settings may be, each alone and all together: ValueError names the flag and says what would do."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfactory.config import Config, Learning

ENCODERS = ("auto", "mlp", "minatar", "nature", "impala")
_AT_LEAST_ONE = (
    "sampling.num_samplers sampling.groups_per_sampler sampling.envs_per_group sampling.rollout_length "
    "sampling.slots_per_group learning.epochs learning.minibatches learning.snapshots_kept learning.nonfinite_budget "
    "run.inference_threads checkpoint.keep eval.episodes log.every_updates"
)
_POSITIVE = "optim.lr optim.eps learning.batch_factor learning.weight_cap env.step_timeout run.stall_timeout"
_NOT_NEGATIVE = (
    "run.seed stop.env_steps stop.frames stop.seconds learning.batch_slots learning.clip learning.forced_lag "
    "learning.snapshot_age learning.value_coef learning.entropy_coef optim.max_grad_norm checkpoint.every_seconds "
    "eval.every log.every_seconds log.console_seconds env.fault_budget checkpoint.milestones "
    "run.learner_threads"
)
_FRACTIONS = "learning.gamma learning.trace_lambda learning.leak"


def check_ranges(config: Config) -> None:
    """What one number may be."""

    def refuse(names: str, rule: str, broken: Any) -> None:
        for name in names.split():
            section, key = name.split(".")
            value = getattr(getattr(config, section), key)
            if broken(value):
                raise ValueError(f"{name.replace('_', '-')} is {value}; it must be {rule}")

    refuse(_AT_LEAST_ONE, "at least 1", lambda x: x < 1)
    refuse(_POSITIVE, "greater than 0", lambda x: not 0 < x < math.inf)
    refuse(_NOT_NEGATIVE, "0 or more", lambda x: not x >= 0)
    refuse(_FRACTIONS, "between 0 and 1", lambda x: not 0 <= x <= 1)
    if config.sampling.slots_per_group > 255 or config.sampling.rollout_length > 65535:  # bits of a request word
        raise ValueError("sampling.slots-per-group goes up to 255 and sampling.rollout-length up to 65535")
    if config.sampling.auto and config.run.mode == "lockstep":
        raise ValueError("sampling.auto looks for the fastest split over processes; lockstep has but one")
    if config.optim.schedule == "linear" and not config.stop.env_steps:
        raise ValueError("optim.schedule linear ends at stop.env-steps, which is 0; set it, or use constant")
    if ":" not in config.model.encoder and config.model.encoder not in ENCODERS:
        raise ValueError(f"model.encoder is {config.model.encoder}; it must be {', '.join(ENCODERS)} or module:Class")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.run.device):
        raise ValueError(f"run.device is {config.run.device}; it must be auto, cpu, cuda or cuda:N")
    if config.run.inference_device and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.run.inference_device):
        raise ValueError(f"run.inference-device is {config.run.inference_device}; it must be auto, cpu, cuda or cuda:N")
    if config.model.separate and config.model.core != "none":
        raise ValueError(f"model.separate and model.core {config.model.core} exclude each other: one memory, one trunk")


def check_batch(config: Config) -> None:
    """Slots, groups, lanes and minibatches have to fit together."""
    s, o = config.sampling, config.learning
    slots, groups, tasks = config.batch_slots, s.num_groups, len(config.env.tasks)
    if len(set(config.env.tasks)) < tasks:
        raise ValueError(f"env.name {config.env.name} names a task twice")
    if groups % tasks:
        raise ValueError(
            f"{tasks} tasks cannot share {groups} groups evenly; "
            f"set sampling.groups-per-sampler to a multiple of {tasks}"
        )
    if slots > groups * s.slots_per_group:
        raise ValueError(
            f"learning.batch-slots {slots} can never be collected: {groups} groups x {s.slots_per_group} slots "
            f"are {groups * s.slots_per_group}; lower it or raise sampling.slots-per-group"
        )
    if s.slots_per_group == 1 and slots != groups:
        raise ValueError(
            f"sampling.slots-per-group 1 is synchronous and needs learning.batch-slots equal to the {groups} "
            f"groups, got {slots}; leave it at 0"
        )
    if config.lanes % o.minibatches:
        divisors = [n for n in range(1, config.lanes + 1) if config.lanes % n == 0]
        near = [n for n in divisors if n < o.minibatches][-1:] + [n for n in divisors if n > o.minibatches][:1]
        raise ValueError(
            f"{config.lanes} lanes ({slots} slots x {s.envs_per_group} envs) must divide into "
            f"{o.minibatches} minibatches; try learning.minibatches {' or '.join(map(str, near))}"
        )
    if o.forced_lag and config.run.mode != "lockstep" and s.slots_per_group != 1:
        raise ValueError(
            "learning.forced-lag needs run.mode lockstep or sampling.slots-per-group 1: lag is free elsewhere"
        )


def check_behavior_weight(o: Learning) -> None:
    """The rule of `sfactory.algo.surrogate.check_weights`, said again as that file needs torch (1.5 s)."""
    asks_trace = o.behavior_weight in ("trace", "twice")
    asks_surrogate = o.behavior_weight in ("surrogate", "twice")
    coupled = o.proximal == "behavior" and o.surrogate != "impala"  # the ratio is policy/behavior by itself
    why = ""
    if asks_trace and o.trace == "gae":
        why = "gae has no weight; use learning.trace vtrace, or learning.behavior-weight surrogate"
    elif asks_surrogate and o.surrogate == "impala":
        why = "impala is weighed by the trace; use learning.behavior-weight trace and learning.trace vtrace"
    elif asks_surrogate and o.surrogate == "ppo" and not coupled:
        why = "ppo never divides by behavior; use learning.surrogate decoupled, or learning.proximal behavior"
    elif coupled and not asks_surrogate:
        why = "the ratio over behavior holds the weight already; use learning.behavior-weight surrogate"
    elif asks_trace and not asks_surrogate and o.proximal != "recompute" and o.surrogate != "impala":
        why = "the trace weighs another policy; use learning.proximal recompute, or learning.behavior-weight surrogate"
    if why:
        setting = f"trace {o.trace}, proximal {o.proximal}, surrogate {o.surrogate}"
        raise ValueError(f"learning.behavior-weight {o.behavior_weight} with {setting}: {why}")
