"""Rules across several settings. Each raises ValueError with one line that names the flags and a value that works."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sfactory.algo.surrogates.options import (
    MASK_USES,
    WITHOUT_PROXIMAL,
    Options,
    reads_proximal,
    unused_options,
    users,
)
from sfactory.algo.weight_rule import weight_conflict
from sfactory.config.algorithms import rules_of, unused_settings

if TYPE_CHECKING:
    from sfactory.config import Config


MOST_ENVS = 2**20
"""Environments of a run, and lanes of a batch."""


class ReplaceableValue(ValueError):
    """A value that a new run cannot have, and another one with which a run that has it would be the same."""

    def __init__(self, setting: str, other: Any, fact: str, advice: str) -> None:
        """setting: dotted name. other: the value that means the same. fact, advice: the two parts of the message."""
        super().__init__(f"{fact}; {advice}")
        self.setting, self.other, self.fact = setting, other, fact


class NoEffect(ReplaceableValue):
    """A setting that nothing reads where the others are as they are; its default means the same."""


def check_together(config: Config) -> None:
    """All rules across settings. ValueError names the flags."""
    check_algorithm(config)
    check_effects(config)
    check_options(config)
    check_inference_workers(config)
    check_batch(config)
    check_replay(config)
    check_trace(config)
    check_steps(config)
    check_behavior_weight(config)
    check_surrogate(config)
    check_dae(config)


def check_algorithm(config: Config) -> None:
    """Settings without effect under `algorithm.name`, and what it cannot do."""
    algorithm = config.algorithm.name
    for name, (value, default) in unused_settings(config).items():
        raise NoEffect(
            name,
            default,
            f"{name.replace('_', '-')} {_typed(value)} has no effect: algorithm.name {algorithm} does not use it",
            f"leave it at {_typed(default)}",
        )
    if config.ppg.phase_minibatches and config.lanes % config.ppg.phase_minibatches:
        raise ValueError(
            f"{config.lanes} lanes must divide into the {config.ppg.phase_minibatches} minibatches of "
            "ppg.phase-minibatches; leave it at 0 for those of batch.minibatches"
        )
    rules = rules_of(config)
    if rules.keeps_batches and config.replay.ratio:
        raise ValueError(
            f"replay.ratio {config.replay.ratio:g} with algorithm.name {algorithm}, which trains again on batches "
            "that it keeps itself; set replay.ratio 0, or use actor_critic"
        )
    if not rules.action_values:
        return
    if config.optim.schedule in ("kl_adaptive", "ess"):
        raise ValueError(
            f"optim.schedule {config.optim.schedule} reads a policy's distance, and algorithm.name {algorithm} has no "
            "policy; use linear or constant"
        )
    moves = config.pqn.epsilon_start != config.pqn.epsilon_end
    if moves and not config.stop.env_steps:
        raise ValueError(
            "pqn.epsilon-end is reached after a fraction of stop.env-steps, which is 0; set it, or make "
            "pqn.epsilon-start and pqn.epsilon-end equal"
        )


def _typed(value: object) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _adapts_rate(config: Config) -> bool:
    return config.optim.schedule == "kl_adaptive"


def _has_fast_passes(config: Config) -> bool:
    return config.optim.sfpo_steps > 0


def _reads_advantages(config: Config) -> bool:
    return str(config.surrogate.objective) not in WITHOUT_ADVANTAGES


def _reads_proximal(config: Config) -> bool:
    s = config.surrogate
    return reads_proximal(s.objective, s.mask, s.behavior_weight)


WITHOUT_ADVANTAGES = ("bpo",)
"""Objectives that compare action values with a threshold of their own."""
_ADVANTAGES = f"a surrogate.objective other than {', '.join(WITHOUT_ADVANTAGES)}"

EFFECTS: dict[str, tuple[str, Callable[[Config], bool]]] = {
    "trace.rho_bar": ("without a trace.estimator other than gae", lambda config: config.trace.estimator != "gae"),
    "trace.c_bar": (
        "without trace.estimator vtrace or leaky_vtrace",
        lambda config: config.trace.estimator in ("vtrace", "leaky_vtrace"),
    ),
    "trace.pg_rho_bar": (
        "without surrogate.behavior-weight trace or twice",
        lambda config: config.surrogate.behavior_weight in ("trace", "twice"),
    ),
    "trace.leak": ("without trace.estimator leaky_vtrace", lambda config: config.trace.estimator == "leaky_vtrace"),
    "trace.baseline": (f"without {_ADVANTAGES}", _reads_advantages),
    "model.pooling": ("without model.encoder impala", lambda config: config.model.encoder == "impala"),
    **dict.fromkeys(
        ("model.value_bins", "model.value_low", "model.value_high", "loss.value_sigma"),
        ("without model.value-head hl_gauss", lambda config: config.model.value_head == "hl_gauss"),
    ),
    "optim.decay_share": ("without optim.schedule linear", lambda config: config.optim.schedule == "linear"),
    "optim.kl_target": ("without optim.schedule kl_adaptive", _adapts_rate),
    "optim.lr_min": ("without optim.schedule kl_adaptive", _adapts_rate),
    "optim.lr_max": ("without optim.schedule kl_adaptive", _adapts_rate),
    "optim.sfpo_alpha": ("without optim.sfpo-steps above 0", _has_fast_passes),
    "optim.sfpo_window": ("without optim.sfpo-steps above 0", _has_fast_passes),
    "optim.sfpo_threshold": ("without optim.sfpo-steps above 0", _has_fast_passes),
    "proximal.center_of_mass": ("without proximal.policy ewma", lambda config: config.proximal.policy == "ewma"),
    "proximal.snapshot_age": ("without proximal.policy snapshot", lambda config: config.proximal.policy == "snapshot"),
    "proximal.snapshots_kept": (
        "without proximal.policy snapshot and proximal.snapshot-age 0",
        lambda config: config.proximal.by_step,
    ),
    "replay.max_age": ("without replay.ratio above 0", lambda config: config.replay.ratio > 0),
    "normalize.advantage": (f"without {_ADVANTAGES}", _reads_advantages),
    "normalize.advantage_span": (
        f"without normalize.advantage true and {_ADVANTAGES}",
        lambda config: config.normalize.advantage and _reads_advantages(config),
    ),
    "proximal.policy": (
        f"with surrogate.objective {', '.join(WITHOUT_PROXIMAL[:-1])} or {WITHOUT_PROXIMAL[-1]}",
        _reads_proximal,
    ),
    "model.core_size": ("without model.core gru or lstm", lambda config: config.model.core != "none"),
    **dict.fromkeys(
        ("model.encoder", "model.hidden", "model.activation", "model.layer_norm", "model.separate"),
        ("with model.network", lambda config: not config.model.network),
    ),
    "pqn.epsilon_fraction": (
        "without pqn.epsilon-start and pqn.epsilon-end that differ",
        lambda config: config.pqn.epsilon_start != config.pqn.epsilon_end,
    ),
    **dict.fromkeys(
        [f"selfplay.{name}" for name in ("pool", "games", "admit", "every", "initial", "opponents")],
        ("without selfplay.share above 0", lambda config: config.selfplay.share > 0),
    ),
    **dict.fromkeys(
        ("eval.episodes", "eval.greedy", "eval.video"),
        ("without eval.every above 0", lambda config: config.eval.every > 0),
    ),
}
"""Settings by dotted name -> where they have no effect, in words, and as a condition where they have one.

Left out: settings of processes, reports and checkpoints that one of the modes does not have (`log.every-updates`,
`run.inference-workers`), so that `--run.mode lockstep` can be added to any command; `log.wandb-*`, which are typed once
and switched on and off by `log.wandb`; `sampling.min-samplers` and `batch.rule`, whose effect depends on the machine.
"""


def has_effect(config: Config, name: str) -> bool:
    """Whether a setting (dotted name) is read where all others are as in `config`."""
    return rules_of(config).uses(name) and (name not in EFFECTS or EFFECTS[name][1](config))


def check_effects(config: Config) -> None:
    """Settings that nothing reads, because another setting is as it is."""
    for name, (where, holds) in EFFECTS.items():
        section, _, key = name.partition(".")
        own = getattr(config, section)
        value, default = getattr(own, key), getattr(type(own)(), key)
        if value != default and not holds(config):
            raise NoEffect(
                name,
                default,
                f"{name.replace('_', '-')} {_typed(value)} has no effect {where}",
                "set that, or leave it out" if where.startswith("without") else "leave one out",
            )


def check_options(config: Config) -> None:
    """Options that exclude or need each other."""
    if config.sampling.auto and config.run.mode == "lockstep":
        raise ValueError("sampling.auto searches for the fastest split over processes; lockstep uses one process")
    if config.optim.schedule == "linear" and not config.stop.env_steps:
        raise ValueError("optim.schedule linear ends at stop.env-steps, which is 0; set it, or use constant")
    if config.loss.entropy_final is not None and not config.stop.env_steps:
        raise ValueError("loss.entropy-final is reached at stop.env-steps, which is 0; set it, or leave it out")
    check_own_network(config)
    check_value_head(config)
    if config.model.separate and config.model.core != "none":
        raise ValueError(
            f"model.separate and model.core {config.model.core} exclude each other: a recurrent core needs one trunk; "
            "set model.separate to false"
        )


def check_own_network(config: Config) -> None:
    """What a network of the user's own cannot have."""
    if not config.model.network:
        return
    refused = {
        f"model.core {config.model.core}": config.model.core != "none",
        "normalize.value-targets true": config.normalize.value_targets,
        "surrogate.median-head true": config.surrogate.has_median_head,
        f"model.value-head {config.model.value_head}": config.model.value_head != "scalar",
        f"algorithm.name {config.algorithm.name}": config.algorithm.name != "actor_critic",
    }
    for setting, holds in refused.items():
        if holds:
            raise ValueError(f"{setting} and model.network {config.model.network} exclude each other; leave one out")


def check_value_head(config: Config) -> None:
    """Bins have a range, and a loss that is not the squared error."""
    model, head = config.model, f"model.value-head {config.model.value_head}"
    if model.value_head == "scalar":
        return
    if not model.value_low < model.value_high:
        raise ValueError(
            f"model.value-low {model.value_low:g} is not below model.value-high {model.value_high:g}; lower the first "
            "or raise the second"
        )
    if config.loss.value_clip:
        raise ValueError(
            f"loss.value-clip {config.loss.value_clip:g} clips a squared error, and the loss of {head} is a "
            "cross-entropy; set loss.value-clip 0"
        )
    if config.surrogate.has_median_head:
        raise ValueError(
            f"surrogate.median-head true and {head} exclude each other: the median head is one number beside one "
            "number; set surrogate.median-head false"
        )


def check_inference_workers(config: Config) -> None:
    """Every inference worker needs a sampler, where the number of samplers is known before the run."""
    workers, samplers = config.run.inference_workers, config.sampling.num_samplers
    if samplers and workers > samplers:
        raise ValueError(
            f"run.inference-workers {workers} cannot share {samplers} sampler{'s' * (samplers > 1)}; each needs one or "
            f"more: use at most {samplers}, or raise sampling.num-samplers"
        )


def check_batch(config: Config) -> None:
    """Slots, groups, lanes and minibatches must fit together."""
    s, minibatches = config.sampling, config.batch.minibatches
    for what, count in (("environments", s.num_envs), ("lanes in a batch", config.lanes)):
        if count > MOST_ENVS:  # nothing is counted or allocated for a number that is a mistake, or a stranger's
            raise ValueError(
                f"sampling.num-samplers {s.samplers} x groups-per-sampler {s.groups_per_sampler} x envs-per-group "
                f"{s.envs_per_group} with batch.slots {config.batch.slots} are {count:.3g} {what}; at most "
                f"{MOST_ENVS:,} are possible"
            )
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
            f"batch.slots {slots} can never be collected: {groups} groups x {s.slots_per_group} slots "
            f"are {groups * s.slots_per_group}; lower it or raise sampling.slots-per-group"
        )
    if s.slots_per_group == 1 and slots != groups:
        raise ValueError(
            f"sampling.slots-per-group 1 is synchronous and needs batch.slots equal to the {groups} "
            f"groups, got {slots}; leave it at 0"
        )
    if config.lanes % minibatches:
        divisors = _divisors(config.lanes)
        near = [n for n in divisors if n < minibatches][-1:] + [n for n in divisors if n > minibatches][:1]
        raise ValueError(
            f"{config.lanes} lanes ({slots} slots x {s.envs_per_group} envs) must divide into "
            f"{minibatches} minibatches; try batch.minibatches {' or '.join(map(str, near))}"
        )
    if config.run.mode == "lockstep" and slots % groups:
        raise ValueError(
            f"batch.slots {slots} leaves out some of the {groups} groups in every update, so the lag would vary; in "
            f"lockstep it is 0 or batch.forced-lag: use a multiple of {groups}, or 0 for one slot of every group"
        )
    if config.batch.forced_lag and config.run.mode != "lockstep" and s.slots_per_group != 1:
        raise ValueError(
            "batch.forced-lag needs run.mode lockstep or sampling.slots-per-group 1: otherwise the lag is not fixed"
        )


def check_replay(config: Config) -> None:
    """Replayed slots are whole, there are enough of them, and they divide into the same minibatches."""
    ratio, slots, minibatches = config.replay.ratio, config.batch_slots, config.batch.minibatches
    replayed, lanes = config.replayed_slots, config.replayed_lanes
    if not ratio:
        return
    if not replayed or abs(ratio * slots - replayed) > 1e-6:
        near = sorted({max(1, math.floor(ratio * slots)), math.ceil(ratio * slots)})
        raise ValueError(
            f"replay.ratio {ratio:g} of a batch of {slots} slots is {ratio * slots:g} slots, which must be a whole "
            f"number; try {' or '.join(f'{number / slots:g}' for number in near)}"
        )
    if ratio > config.replay.max_age:
        raise ValueError(
            f"replay.ratio {ratio:g} needs that many older batches, and replay.max-age {config.replay.max_age} keeps "
            f"{config.replay.max_age}; set replay.max-age to {math.ceil(ratio)} or more"
        )
    if lanes % minibatches:
        raise ValueError(
            f"{lanes} replayed lanes ({replayed} slots x {config.sampling.envs_per_group} envs) must divide into "
            f"{minibatches} minibatches, as the fresh ones; change batch.minibatches or replay.ratio"
        )
    held = config.held_slots * config.sampling.envs_per_group
    if max(held, config.lanes + lanes) > MOST_ENVS:
        raise ValueError(
            f"replay.max-age {config.replay.max_age} with replay.ratio {ratio:g} holds {held:.3g} lanes and trains on "
            f"{config.lanes + lanes:.3g}; at most {MOST_ENVS:,} are possible"
        )


def _divisors(number: int) -> list[int]:
    """All divisors, the smallest first, in as many steps as the root of the number: there may be 10^12 lanes."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def check_trace(config: Config) -> None:
    """V-trace's clips: a trace coefficient above the weight of the temporal differences has no theory."""
    trace = config.trace
    if trace.estimator in ("vtrace", "leaky_vtrace") and trace.c_bar > trace.rho_bar:
        raise ValueError(
            f"trace.c-bar {trace.c_bar:g} with trace.rho-bar {trace.rho_bar:g}: {trace.estimator} needs rho-bar >= "
            f"c-bar (arXiv 1802.01561); lower trace.c-bar or raise trace.rho-bar"
        )


def check_steps(config: Config) -> None:
    """The bounds of a rate that moves by itself, and passes that exclude each other."""
    optim = config.optim
    if optim.schedule == "kl_adaptive" and not optim.lr_min <= optim.lr <= optim.lr_max:
        raise ReplaceableValue(
            "optim.lr",
            min(max(optim.lr, optim.lr_min), optim.lr_max),
            f"optim.lr {optim.lr:g} is outside optim.lr-min {optim.lr_min:g} to optim.lr-max {optim.lr_max:g}, between "
            "which kl_adaptive moves it",
            "change one of the three",
        )
    if optim.sfpo_steps and config.batch.epochs != 1:
        raise ValueError(
            f"optim.sfpo-steps {optim.sfpo_steps} makes its own passes over a batch, in place of batch.epochs "
            f"{config.batch.epochs}; set batch.epochs 1"
        )


_FLAGS = {
    "trace": "trace.estimator",
    "proximal": "proximal.policy",
    "surrogate": "surrogate.objective",
    "behavior_weight": "surrogate.behavior-weight",
}


def check_behavior_weight(config: Config) -> None:
    """The weight proximal/behavior must enter as often as surrogate.behavior-weight says."""
    values = {
        "trace": config.trace.estimator,
        "proximal": config.proximal.policy,
        "surrogate": config.surrogate.objective,
        "behavior_weight": config.surrogate.behavior_weight,
    }
    unused = [name for name, flag in _FLAGS.items() if not rules_of(config).uses(flag.replace("-", "_"))]
    conflict = weight_conflict(**values, fixed=unused)
    if conflict is not None:
        given = ", ".join(f"{_FLAGS[name]} {values[name]}" for name in ("trace", "proximal", "surrogate"))
        remedy = ", or ".join(
            " and ".join(f"{_FLAGS[name]} {value}" for name, value in remedy.items()) for remedy in conflict.remedies
        )
        raise ValueError(
            f"{_FLAGS['behavior_weight']} {values['behavior_weight']} with {given}: {conflict.reason}; use {remedy}"
        )


def check_surrogate(config: Config) -> None:
    """Every setting of the surrogate has an effect, and the proximal policy has what the surrogate needs."""
    s = config.surrogate
    for name in unused_options(s.objective, s.mask, Options.read(s)):
        default = getattr(type(s)(), name)
        raise NoEffect(
            f"surrogate.{name}",
            default,
            f"surrogate.{name.replace('_', '-')} {_typed(getattr(s, name))} has no effect with surrogate.objective "
            f"{s.objective}{f' and mask {s.mask}' if s.mask != 'none' else ''}",
            f"leave it at {_typed(default)}, or use "
            f"surrogate.{'mask' if users(name)[0] in MASK_USES else 'objective'} {' or '.join(users(name))}",
        )
    if s.mask == "erc" and not config.proximal.has_distribution:
        raise ValueError(
            f"surrogate.mask erc compares entropies, and {_proximal(config)} has none; use recompute, ewma or behavior"
        )
    for low, high in (
        ("weight_low", "weight_high"),
        ("weight_low_negative", "weight_high_negative"),
        ("entropy_ratio_low", "entropy_ratio_high"),
        ("bound_low", "bound_high"),
        ("bound_low_max", "bound_high"),
    ):
        if getattr(s, low) > getattr(s, high):
            names = [f"surrogate.{name.replace('_', '-')} {getattr(s, name):g}" for name in (low, high)]
            raise ValueError(f"{names[0]} is above {names[1]}; lower the first or raise the second")
    if s.objective == "mdpo" and s.kl_anneal and not config.stop.env_steps:
        raise ValueError(
            "surrogate.kl-anneal ends at stop.env-steps, which is 0; set it, or use surrogate.kl-anneal false"
        )


def check_dae(config: Config) -> None:
    """What learned advantages cannot be combined with."""
    if config.algorithm.name != "dae":
        return
    s = config.surrogate
    if s.objective in WITHOUT_ADVANTAGES:
        raise ValueError(
            f"surrogate.objective {s.objective} with algorithm.name dae, whose advantages it does not read; use "
            "decoupled"
        )
    if config.dae.advantages != "all":
        return
    for name, value, only in (
        ("surrogate.objective", s.objective, "decoupled"),
        ("surrogate.behavior-weight", s.behavior_weight, "surrogate"),
        ("surrogate.mask", s.mask, "none"),
        ("surrogate.weight-cap", s.weight_cap, type(s)().weight_cap),
    ):
        if value != only:
            raise ValueError(
                f"{name} {_typed(value)} has no effect with dae.advantages all, whose loss has no weights: leave it at "
                f"{_typed(only)}, or use dae.advantages returns or taken"
            )
    if not config.proximal.has_distribution:
        raise ValueError(
            f"dae.advantages all needs the probabilities of all actions, and {_proximal(config)} has none; use "
            "recompute, ewma or behavior, or dae.advantages returns or taken"
        )


def _proximal(config: Config) -> str:
    """The settings that choose the proximal policy, as in `proximal.policy snapshot with snapshot-age 0`."""
    return f"proximal.policy {config.proximal.policy}{' with snapshot-age 0' if config.proximal.by_step else ''}"
