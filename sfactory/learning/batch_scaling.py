"""`--batch.factor`: the settings of a run rescaled for another batch size, and the table that says so."""

from __future__ import annotations

from dataclasses import replace

from sfactory.algo.scaling import rescale
from sfactory.config import Config

CRITICAL_BATCH = 20_000  # rows: above this a larger batch of Atari-like tasks buys little (arXiv 1812.06162, fig. 4)


def rescale_batch(config: Config) -> tuple[Config, list[str]]:
    """The configuration that is trained, and lines for people: what changed, from what, why, and where theory ends.

    Raises ValueError, naming the setting, where a count would not be whole or settings no longer fit together.
    """
    factor, rule = config.batch.factor, config.batch.rule
    if factor == 1.0:
        return config, []
    sections = {
        "sampling": ("envs_per_group",),
        "batch": ("minibatches", "forced_lag", "epochs"),
        "proximal": ("center_of_mass",),
        "optim": ("lr", "beta1", "beta2"),
        "normalize": ("advantage_span",),
    }
    place = {name: section for section, names in sections.items() for name in names}
    settings = {name: getattr(getattr(config, section), name) for name, section in place.items()}
    del settings["center_of_mass"]  # rescaled only where it is used
    settings["adam_eps"] = config.optim.eps
    if config.proximal.policy == "ewma":
        settings["center_of_mass"] = config.proximal.center_of_mass or float(config.optimizer_steps_per_update)
    result = rescale(settings, factor, rule)
    changed: dict[str, dict[str, float]] = {section: {} for section in sections}
    lines = [f"batch factor {factor:g} ({rule}):"]
    for row in result.rows:
        changed[place[row.name]][row.name] = row.after
        lines.append(f"  {place[row.name]}.{row.name:16} {row.before:<10.6g} -> {row.after:<10.6g} {row.why}")
    lines += [f"  warning: {warning}" for warning in result.warnings]
    new = replace(config, **{s: replace(getattr(config, s), **values) for s, values in changed.items() if values})
    if new.batch_rows > CRITICAL_BATCH:
        lines.append(f"  warning: {new.batch_rows:,} rows per update are probably above the critical batch size")
    return new, lines
