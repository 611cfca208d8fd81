"""Old names of settings, still accepted in flags, files and Python: `learning.*` became five sections.

The table translates in both directions, so that files and folders written with the old names keep their meaning.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

RENAMED = {
    "learning.batch_slots": "batch.slots",
    "learning.epochs": "batch.epochs",
    "learning.minibatches": "batch.minibatches",
    "learning.shuffle": "batch.shuffle",
    "learning.forced_lag": "batch.forced_lag",
    "learning.batch_factor": "batch.factor",
    "learning.batch_rule": "batch.rule",
    "learning.trace": "trace.estimator",
    "learning.gamma": "trace.gamma",
    "learning.trace_lambda": "trace.trace_lambda",
    "learning.rho_bar": "trace.rho_bar",
    "learning.c_bar": "trace.c_bar",
    "learning.pg_rho_bar": "trace.pg_rho_bar",
    "learning.leak": "trace.leak",
    "learning.proximal": "proximal.policy",
    "learning.proximal_com": "proximal.center_of_mass",
    "learning.snapshot_age": "proximal.snapshot_age",
    "learning.snapshots_kept": "proximal.snapshots_kept",
    "learning.surrogate": "surrogate.objective",
    "learning.behavior_weight": "surrogate.behavior_weight",
    "learning.clip": "surrogate.clip",
    "learning.dual_clip": "surrogate.dual_clip",
    "learning.kl_coef": "surrogate.kl_coef",
    "learning.weight_cap": "surrogate.weight_cap",
    "learning.value_coef": "loss.value_coef",
    "learning.value_clip": "loss.value_clip",
    "learning.entropy_coef": "loss.entropy_coef",
    "learning.nonfinite_budget": "loss.nonfinite_budget",
    "learning.precision": "run.precision",
}
"""Old dotted name -> current dotted name, both with underscores."""

_ORIGINAL = {new: old for old, new in RENAMED.items()}
_reported: set[str] = set()


def current_name(name: str) -> str:
    """The current name of a setting; current and unknown names are returned unchanged."""
    return RENAMED.get(name, name)


def original_name(name: str) -> str:
    """The first name that a setting had: stable keys for hashes and caches."""
    return _ORIGINAL.get(name, name)


def report_old_names(old_names: Iterable[str]) -> None:
    """Print one line on stderr about old names; each name once per process."""
    new = [name for name in old_names if name not in _reported]
    if new:
        _reported.update(new)
        changes = ", ".join(f"{name} is now {current_name(name)}" for name in new).replace("_", "-")
        print(f"note: {changes} (old names still work)", file=sys.stderr)
