"""Rescale the settings of a run for another batch size (`learning.batch_factor`)."""

from __future__ import annotations

from dataclasses import replace

from sfactory.algo.scaling import rescale
from sfactory.config import Config

CRITICAL_BATCH = 20_000  # rows: above this a larger batch of Atari-like tasks gains little (arXiv 1812.06162, fig. 4)


def rescale_batch(config: Config) -> tuple[Config, list[str]]:
    """Return the rescaled configuration and a table of the changes, with reasons and warnings, as lines of text.

    Raises ValueError, naming the setting, if a count would not be a whole number or settings no longer fit together.
    """
    factor, rule = config.learning.batch_factor, config.learning.batch_rule
    if factor == 1.0:
        return config, []
    sections = {  # what `rescale` may change
        "sampling": ("envs_per_group",),
        "learning": ("minibatches", "forced_lag", "epochs"),
        "optim": ("lr", "beta1", "beta2"),
        "normalize": ("advantage_span",),
    }
    place = {name: section for section, names in sections.items() for name in names}
    settings = {name: getattr(getattr(config, section), name) for name, section in place.items()}
    settings["adam_eps"] = config.optim.eps
    if config.learning.proximal == "ewma":
        place["center_of_mass"] = "learning"
        settings["center_of_mass"] = config.learning.proximal_com or float(config.optimizer_steps_per_update)
    result = rescale(settings, factor, rule)
    changed: dict[str, dict[str, float]] = {section: {} for section in sections}
    lines = [f"batch factor {factor:g} ({rule}):"]
    for row in result.rows:
        field = "proximal_com" if row.name == "center_of_mass" else row.name
        changed[place[row.name]][field] = row.after
        lines.append(f"  {place[row.name]}.{field:16} {row.before:<10.6g} -> {row.after:<10.6g} {row.why}")
    lines += [f"  warning: {warning}" for warning in result.warnings]
    new = replace(config, **{s: replace(getattr(config, s), **values) for s, values in changed.items() if values})
    if new.batch_rows > CRITICAL_BATCH:
        lines.append(f"  warning: {new.batch_rows:,} rows per update are probably above the critical batch size")
    return new, lines
