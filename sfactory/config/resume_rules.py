"""What may change between two launches of one run."""

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
    "model.",
    "normalize.obs",
    "normalize.reward",
    "normalize.value-targets",
    "run.mode",
)
"""What a resume may not change: the task, the network, and what the checkpoint's statistics belong to. In lockstep the
sampling neither: the checkpoint holds every group where it stood."""

FREE = ("run.", "stop.", "log.", "checkpoint.", "sampling.", "env.step-timeout", "env.fault-budget")
"""What a resume may change without a word. Everything else is told: the curve goes on under another setting."""


def refuse_changes(before: Config, after: Config, allowed: Sequence[str]) -> None:
    """Exit 4 with a table of what cannot change in the middle of a run."""
    from sfactory.config import to_dict
    from sfactory.config.parsing import shown

    old, new = to_dict(before), to_dict(after)
    names = [(section, key) for section in old for key in old[section] if old[section][key] != new[section][key]]
    changed = {shown(f"{section}.{key}"): (old[section][key], new[section][key]) for section, key in names}
    fixed = (*FIXED, "sampling.", "learning.forced-lag") if before.run.mode == "lockstep" else FIXED
    refused = {n: v for n, v in changed.items() if n.startswith(fixed) and n not in allowed}
    for name, (was, asked) in changed.items():
        if name not in refused and not name.startswith(FREE):
            print(f"warning: {name} was {was!r} and is {asked!r} from here on: one run, two settings", file=sys.stderr)
    for name, (was, asked) in refused.items():
        print(f"  {name:24} {was!r} -> {asked!r}", file=sys.stderr)
    if refused:
        rest = "start a new run with `sfactory train`, or say --allow " + " --allow ".join(refused)
        raise CommandError(Exit.RESUME_REFUSED, f"{', '.join(refused)} cannot change in the middle of a run; {rest}")
