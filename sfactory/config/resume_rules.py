"""Rules for settings that change between two launches of one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfactory.errors import CommandError, Exit

if TYPE_CHECKING:
    from sfactory.config import Config

FIXED = (
    "env.name",
    "env.protocol",
    "env.settings",
    "env.wrapper",
    "env.drop",
    "model.",
    "normalize.obs",
    "normalize.reward",
    "normalize.value-targets",
    "run.mode",
)
"""Prefixes of settings that a resume cannot change: the task, the network, and what the statistics of the checkpoint
describe. In lockstep also the sampling: the checkpoint holds the state of every group."""

FREE = (
    "run.",
    "stop.",
    "log.",
    "checkpoint.",
    "sampling.",
    "env.step-timeout",
    "env.build-timeout",
    "env.fault-budget",
    "eval.num-envs",
)
"""Prefixes of settings that a resume may change silently. All others print a warning: the curve continues under another
setting."""

REPORTED = ("run.precision",)
"""Exceptions to FREE: changes of these print a warning."""


def refuse_changes(before: Config, after: Config, allowed: Sequence[str]) -> None:
    """Raise CommandError (exit 4) if settings changed that a run must keep; prints the differences on stderr.

    allowed: names of settings, also old ones, that may change nevertheless.
    """
    from sfactory.config import to_dict
    from sfactory.config.parsing import flag_name
    from sfactory.config.renamed import current_name, report_old_names
    from sfactory.config.values import same

    names_allowed = [name.replace("-", "_") for name in allowed]
    report_old_names(name for name in names_allowed if current_name(name) != name)
    accepted = {flag_name(current_name(name)) for name in names_allowed}
    old, new = to_dict(before), to_dict(after)
    names = [
        (section, key) for section in old for key in old[section] if not same(old[section][key], new[section][key])
    ]
    changed = {flag_name(f"{section}.{key}"): (old[section][key], new[section][key]) for section, key in names}
    fixed = (*FIXED, "sampling.", "batch.forced-lag") if before.run.mode == "lockstep" else FIXED
    refused = {n: v for n, v in changed.items() if n.startswith(fixed) and n not in accepted}
    for name, (before_value, after_value) in changed.items():
        if name not in refused and (name in REPORTED or not name.startswith(FREE)):
            text = f"{name} was {before_value!r} and is {after_value!r} from here on; the curve mixes two settings"
            print(f"warning: {text}", file=sys.stderr)
    for name, (before_value, after_value) in refused.items():
        print(f"  {name:24} {before_value!r} -> {after_value!r}", file=sys.stderr)
    if refused:
        rest = "start a new run with `sfactory train`, or add --allow " + " --allow ".join(refused)
        raise CommandError(Exit.RESUME_REFUSED, f"{', '.join(refused)} cannot change in the middle of a run; {rest}")
