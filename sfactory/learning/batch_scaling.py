"""Rescale the settings of a run for another batch size: `batch.factor`, and several learners.

Every learner of a job has a batch of its own, so that W learners train on a batch W times as large: the same rules
apply with a factor of 1 / W, but for the number of environments, which the other learners bring.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sfactory.algo.scaling import RULES, TARGET_SPAN, Row, rescale, rescaled_span
from sfactory.algo.surrogates.options import USES
from sfactory.config import Config
from sfactory.config.cross_checks import has_effect

CRITICAL_BATCH = 20_000  # rows: above this a larger batch of Atari-like tasks gains little (arXiv 1812.06162, fig. 4)
SECTIONS = {  # what `rescale` may change
    "sampling": ("envs_per_group",),
    "batch": ("minibatches", "forced_lag", "epochs"),
    "proximal": ("center_of_mass", "snapshot_age", "snapshots_kept"),
    "optim": ("lr", "lr_min", "lr_max", "beta1", "beta2"),
    "ppg": ("policy_updates", "phase_minibatches"),
    "normalize": ("advantage_span",),
}


def rescale_batch(config: Config, learners: int = 1, agents: int = 1) -> tuple[Config, list[str]]:
    """Return the rescaled configuration and a table of the changes, with reasons and warnings, as lines of text.

    agents: rows of an environment.

    Raises ValueError, naming the setting, if a count would not be a whole number or settings no longer fit together.
    """
    factor, rule = config.batch.factor, config.batch.rule
    config, lines = _rescaled(config, factor, f"batch factor {factor:g} ({rule}):", learners * agents)
    title = f"{learners} learners ({rule}), a batch for each:"
    config, more = _rescaled(config, 1.0 / learners, title, learners * agents, ("envs_per_group",))
    return config, lines + more


def target_span(config: Config, learners: int) -> float:
    """Updates over which the statistics of value targets are averaged."""
    scaled = "target_span" in RULES[config.batch.rule]
    return rescaled_span(TARGET_SPAN, config.batch.factor / learners) if scaled else TARGET_SPAN


def _rescaled(
    config: Config, factor: float, title: str, of_all: int, unchanged: tuple[str, ...] = ()
) -> tuple[Config, list[str]]:
    """One of the two steps of `rescale_batch`. of_all: rows of all learners and agents for one of `Config.batch_rows`.
    unchanged: settings that stay as they are."""
    rule = config.batch.rule
    if factor == 1.0:
        return config, []
    place = {name: section for section, names in SECTIONS.items() for name in names if name not in unchanged}
    result = rescale(_settings(config, place), factor, rule)
    rows = result.rows
    if config.proximal.policy == "ewma" and not any(row.name == "center_of_mass" for row in rows):
        kept = result.settings["center_of_mass"]
        rows = [*rows, Row("center_of_mass", kept, kept, "optimizer steps of the same size: the same age in env steps")]
    changed: dict[str, dict[str, float]] = {section: {} for section in SECTIONS}
    lines = [title]
    for row in rows:
        name = f"{place[row.name]}.{row.name}" if row.name in place else "average of normalize.value_targets"
        if row.name in place:
            changed[place[row.name]][row.name] = row.after
        lines.append(f"  {name:26} {row.before:<10.6g} -> {row.after:<10.6g} {row.why}")
    lines += [f"  not rescaled: {text}" for text in (*_counted_in_updates(config), *_norms(config))]
    lines += [f"  warning: {warning}" for warning in result.warnings]
    new = replace(config, **{s: replace(getattr(config, s), **values) for s, values in changed.items() if values})
    if (per_update := of_all * new.batch_rows) > CRITICAL_BATCH:
        lines.append(f"  warning: {per_update:,} rows per update are probably above the critical batch size")
    return new, lines


def _settings(config: Config, place: dict[str, str]) -> dict[str, float]:
    """The settings that `rescale` may change, of the parts that this run uses."""
    settings = {
        name: getattr(getattr(config, section), name)
        for name, section in place.items()
        if has_effect(config, f"{section}.{name}")
    }
    if config.proximal.policy == "ewma":
        settings["center_of_mass"] = config.proximal.center_of_mass or float(config.optimizer_steps_per_update)
    if config.normalize.value_targets:
        settings["target_span"] = TARGET_SPAN
    return {**settings, "adam_eps": config.optim.eps}


def _counted_in_updates(config: Config) -> Iterator[str]:
    """What is counted in updates or their steps and stays as it is: it is another number of env steps than before."""
    if config.optim.schedule == "kl_adaptive":
        yield "optim.schedule kl_adaptive changes the learning rate once per update"
    if config.optim.schedule == "staleness":
        yield "optim.schedule staleness divides by the lag in updates"
    if config.optim.adam_rel:
        yield "optim.adam_rel begins the count of Adam's steps again once per update"
    if "dual_rate" in USES[config.surrogate.objective] and config.batch.rule != "more_minibatches":
        yield f"surrogate.dual_rate {config.surrogate.dual_rate:g}, once per optimizer step"
    if config.optim.sfpo_steps:
        yield f"optim.sfpo_window {config.optim.sfpo_window}, in updates"
    if config.proximal.policy == "interpolate":
        yield "proximal.policy interpolate weighs by the lag in updates"
    if config.run.mode == "async" and config.sampling.slots_per_group > 1:
        yield f"sampling.slots_per_group {config.sampling.slots_per_group}: data stay as many updates old"
    if config.replay.ratio:
        yield f"replay.max_age {config.replay.max_age}: replayed slots are at most as many updates older"
    if config.run.mode == "lockstep":
        yield f"log.every_updates {config.log.every_updates}"
    yield f"loss.nonfinite_budget {config.loss.nonfinite_budget}, in updates"


def _norms(config: Config) -> Iterator[str]:
    """Limits on what depends on the size of a minibatch, which all rules but more_minibatches change."""
    if config.optim.max_grad_norm and config.batch.rule != "more_minibatches":
        yield (
            f"optim.max_grad_norm {config.optim.max_grad_norm:g}: gradients of smaller minibatches have more noise and "
            f"larger norms"
        )
