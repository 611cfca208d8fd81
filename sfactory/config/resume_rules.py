"""Which settings may change between two launches of one run: freely, with a warning, or not at all."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from sfactory.config.algorithms import rules_of
from sfactory.errors import CommandError, Exit

if TYPE_CHECKING:
    from sfactory.config import Config

FIXED = (
    "algorithm.",
    "env.name",
    "env.protocol",
    "env.settings",
    "env.wrapper",
    "env.drop",
    "env.agent-id",
    "env.pad-spaces",
    "model.",
    "normalize.obs",
    "normalize.reward",
    "normalize.value-targets",
    "run.mode",
    "run.dir",
    "run.seed",
    "run.init-from",
    "sampling.auto",
)
"""Prefixes of settings that a resume refuses: the task, the network, what the statistics of the checkpoint describe,
the seed under which a run is counted, and what has an effect at the start of a run only."""

FIXED_IN_LOCKSTEP = (
    "sampling.",
    "batch.forced-lag",
    "batch.factor",
    "ppg.policy-updates",
    "selfplay.share",
    "selfplay.pool",
    "selfplay.opponents",
    "env.info-keys",
)
"""Refused in lockstep too: the checkpoint holds the state of every group."""

FREE = (
    "run.learner-threads",
    "run.inference-threads",
    "run.inference-workers",
    "run.debug",
    "run.profile",
    "run.spare-restarts",
    "run.stall-timeout",
    "run.requeue",
    "stop.",
    "log.",
    "checkpoint.",
    "env.step-timeout",
    "env.build-timeout",
    "env.fault-budget",
    "eval.every",
    "eval.num-envs",
    "eval.video",
)
"""Prefixes of settings that change silently: they do not change what an update learns. All others are accepted with a
warning, because the curve continues under another setting."""


class Rule(Enum):
    """What a resume does with a changed setting."""

    FREE = "changes silently"
    WARNS = "accepted with a warning"
    REFUSED = "refused (exit code 4)"


HEADS = ("surrogate.objective", "surrogate.median-head")
"""Settings that are refused where the network would get or lose its median head."""


def rule_of(name: str, lockstep: bool = False, linear: bool = False, other_heads: bool = False) -> Rule:
    """The rule of a setting, by its name on the command line.

    linear: whether something follows a line that ends at a part of stop.env-steps, before or after the change: the
    learning rate, the entropy bonus, the step size of mdpo, or the share of random actions. other_heads: whether the
    network gets or loses its median head.
    """
    if other_heads and name in HEADS:
        return Rule.REFUSED
    if name.startswith(FIXED) or (lockstep and name.startswith(FIXED_IN_LOCKSTEP)):
        return Rule.REFUSED
    if linear and name == "stop.env-steps":
        return Rule.WARNS
    return Rule.FREE if name.startswith(FREE) else Rule.WARNS


def changes(before: Config, after: Config, rule: Rule) -> dict[str, tuple[Any, Any]]:
    """Name on the command line -> values before and after, of the changed settings with this rule."""
    from sfactory.config import to_dict
    from sfactory.config.parsing import flag_name
    from sfactory.config.values import same

    old, new = to_dict(before), to_dict(after)
    pairs = {
        flag_name(f"{section}.{key}"): (value, new[section][key])
        for section in old
        for key, value in old[section].items()
    }
    lockstep = before.run.mode == "lockstep"
    linear = any(ends_at_env_steps(config) for config in (before, after))
    other_heads = before.surrogate.has_median_head != after.surrogate.has_median_head
    return {
        name: pair
        for name, pair in pairs.items()
        if not same(*pair) and rule_of(name, lockstep, linear, other_heads) is rule
    }


def ends_at_env_steps(config: Config) -> bool:
    """Whether what is learned depends on stop.env-steps."""
    surrogate = config.surrogate
    anneals = surrogate.objective == "mdpo" and surrogate.kl_anneal
    entropy = config.loss.entropy_final is not None
    return config.optim.schedule == "linear" or entropy or anneals or rules_of(config).action_values


def refuse_changes(before: Config, after: Config, allowed: Sequence[str]) -> None:
    """Raise CommandError (exit 4) if settings changed that a run must keep; prints the differences on stderr.

    allowed: names of settings, also old ones and short forms, that may change nevertheless.
    """
    from sfactory.config.parsing import flag_name
    from sfactory.config.renamed import current_name, report_old_names
    from sfactory.config.short_forms import long_name

    names = [long_name(name.replace("-", "_")) for name in allowed]
    report_old_names(name for name in names if current_name(name) != name)
    accepted = {flag_name(current_name(name)) for name in names}
    refused = {n: v for n, v in changes(before, after, Rule.REFUSED).items() if n not in accepted}
    for name, (before_value, after_value) in refused.items():
        print(f"  {name:24} {before_value!r} -> {after_value!r}", file=sys.stderr)
    if refused:
        given = " --allow ".join(refused)
        rest = f"start a new run with `sfactory train`, or add --allow {given}, in Python allow={list(refused)}"
        raise CommandError(Exit.RESUME_REFUSED, f"{', '.join(refused)} cannot change in the middle of a run; {rest}")


def changed_settings(before: Config, after: Config) -> list[str]:
    """A line for every change that alters what is learned from here on; also for those that --allow has accepted."""
    refused, warned = (changes(before, after, rule) for rule in (Rule.REFUSED, Rule.WARNS))
    found: Mapping[str, tuple[Any, Any]] = {**refused, **warned}
    return [
        f"warning: {name} was {old!r} and is {new!r} from here on; the curve mixes two settings"
        for name, (old, new) in found.items()
    ]
