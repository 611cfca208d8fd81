"""Hyper-parameters of objectives, and which of them each one reads. No torch: the command line checks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Options(NamedTuple):
    """Hyper-parameters, named like their settings in the section `surrogate`, whose help has their meaning."""

    clip: float = 0.2
    """Trust region on r; also defines ``clipped`` for objectives without a trust region."""
    dual_clip: float | None = None
    """Bound on the loss of negative advantages, in multiples of the advantage; greater than 1. None or 0: off."""
    weight_cap: float | None = 100.0
    """Upper bound of w. None or 0: e^20."""
    kl_coef: float = 1.0
    """Coefficient of the KL penalty."""

    @classmethod
    def create(cls, options: Mapping[str, Any]) -> Options:
        """Options by name. ValueError if a name does not exist."""
        for name in options:
            if name not in cls._fields:
                raise ValueError(f"objective option {name!r} does not exist, expected one of {', '.join(cls._fields)}")
        return cls(**options)

    @classmethod
    def read(cls, settings: object) -> dict[str, float | None]:
        """The attributes of ``settings`` that are named like an option: the keyword arguments of an objective."""
        return {name: getattr(settings, name) for name in cls._fields}


USES: dict[str, tuple[str, ...]] = {
    "ppo": ("dual_clip", "weight_cap"),
    "decoupled": ("dual_clip", "weight_cap"),
    "decoupled_kl": ("weight_cap", "kl_coef"),
    "impala": (),
    "is_pg": ("weight_cap",),
    "cispo": ("weight_cap",),
    "topr": (),
    "mdpo": ("weight_cap", "kl_coef"),
    "dppo_tv": ("weight_cap",),
    "sapo": ("weight_cap",),
    "mhpo": ("weight_cap",),
}
"""Options that each objective reads besides clip, which the metric ``clipped`` always needs. Without weight_cap, w has
no cap."""


def unused_options(objective: str, options: Mapping[str, float | None]) -> list[str]:
    """Names of options that are not at their default although the objective does not read them.

    None and 0 both mean off. ValueError for an option that does not exist.
    """
    used, values = ("clip", *USES[objective]), Options.create(options)._asdict()
    changed = [name for name, default in Options._field_defaults.items() if (values[name] or 0) != (default or 0)]
    return [name for name in changed if name not in used]
