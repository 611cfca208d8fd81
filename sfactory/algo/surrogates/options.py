"""Hyper-parameters of objectives and masks, and which of them each one reads. No torch: the configuration checks it."""

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
    kl_anneal: bool = True
    """Whether mdpo divides it by the share of the run that is left."""
    log_ratio_coef: float = 0.1
    """opmd: coefficient of (log r)^2."""
    baseline_shift: float = 0.1
    """asymre: number added to every advantage."""
    outer_low: float = 0.6
    """rec_wide and rec_ring: distance of the outer lower bound of r below 1."""
    outer_high: float = 2.0
    """rec_wide and rec_ring: distance of the outer upper bound of r above 1."""
    ratio_weight: bool = True
    """rec_*: whether samples are weighed by r."""
    weight_low: float = 0.8
    """dispo: lower bound of w where A > 0."""
    weight_high: float = 11.0
    """dispo: upper bound of w where A > 0."""
    weight_low_negative: float = 0.0
    """dispo: lower bound of w elsewhere."""
    weight_high_negative: float = 101.0
    """dispo: upper bound of w elsewhere."""
    gate_temperature: float = 1.0
    """sapo: tau where A > 0."""
    gate_temperature_negative: float = 1.05
    """sapo: tau elsewhere."""
    ratio_bound: float = 1.5
    """mhpo: bound of |log r|."""
    hazard_shape: float = 1.5
    """mhpo: exponent of the hazard of r > 1."""
    hazard_scale: float = 1.0
    """mhpo: scale of the hazard of r > 1."""
    hazard_shape_negative: float = 2.0
    """mhpo: exponent of the hazard of r < 1."""
    hazard_scale_negative: float = 0.8
    """mhpo: scale of the hazard of r < 1."""
    balance: float = 1.0
    """bapo: sum of the positive over the sum of the negative contributions that the bounds are moved for."""
    bound_low: float = 0.6
    """bapo: lower bound of r at the start of the search."""
    bound_low_max: float = 0.9
    """bapo: its largest value."""
    bound_high: float = 1.2
    """bapo: upper bound of r at the start of the search."""
    bound_high_max: float = 3.0
    """bapo: its largest value."""
    bound_high_step: float = 0.1
    """bapo: its step."""
    median_head: bool = True
    """bpo: whether the network has a head for the median of the action values."""
    target_temperature: float = 1e-3
    """bpo: temperature of the target of r, in units of the value head's output."""
    variance_target: float = 0.02
    """r2vpo: bound of the mean of (r - 1)^2."""
    dual_rate: float = 1.0
    """r2vpo: step size of the dual variable."""
    dual_start: float = 1.0
    """r2vpo: its first value."""
    second_moment: float = 0.04
    """m2po: bound of the mean of (log w)^2 over the samples that are kept."""
    entropy_ratio_low: float = 0.95
    """erc: samples are kept where the entropy is more than this multiple of the proximal policy's."""
    entropy_ratio_high: float = 1.05
    """erc: and less than this."""

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
    "mdpo": ("weight_cap", "kl_coef", "kl_anneal"),
    "dppo_tv": ("weight_cap",),
    "dppo_kl": ("weight_cap",),
    "sapo": ("weight_cap", "gate_temperature", "gate_temperature_negative"),
    "mhpo": (
        "weight_cap",
        "ratio_bound",
        "hazard_shape",
        "hazard_scale",
        "hazard_shape_negative",
        "hazard_scale_negative",
    ),
    "dispo": ("weight_low", "weight_high", "weight_low_negative", "weight_high_negative"),
    "rec_one_side": ("weight_cap", "ratio_weight"),
    "rec_wide": ("weight_cap", "ratio_weight", "outer_low", "outer_high"),
    "rec_ring": ("weight_cap", "ratio_weight", "outer_low", "outer_high"),
    "opmd": ("weight_cap", "log_ratio_coef"),
    "asymre": ("weight_cap", "baseline_shift"),
    "geppo": ("weight_cap",),
    "minpro": ("weight_cap",),
    "bapo": (
        "dual_clip",
        "weight_cap",
        "balance",
        "bound_low",
        "bound_low_max",
        "bound_high",
        "bound_high_max",
        "bound_high_step",
    ),
    "r2vpo": ("weight_cap", "variance_target", "dual_rate", "dual_start"),
    "bpo": ("weight_cap", "target_temperature", "median_head"),
}
"""Options that each objective reads besides clip, which the metric ``clipped`` always needs. Without weight_cap, w has
no cap."""

MASK_USES: dict[str, tuple[str, ...]] = {
    "none": (),
    "m2po": ("second_moment",),
    "erc": ("entropy_ratio_low", "entropy_ratio_high"),
}
"""Options that each mask reads."""


WITHOUT_PROXIMAL = ("impala", "is_pg", "cispo", "topr", "dispo", "minpro")
"""Objectives whose only ratio is policy / behavior, if any: the proximal policy does not change their loss."""


def reads_proximal(objective: str, mask: str, behavior_weight: str) -> bool:
    """Whether the proximal policy changes the loss; reported distances aside.

    Where the weight is not in the surrogate, the ratio of these objectives is that over the proximal policy; impala has
    none.
    """
    by_ratio = objective != "impala" and behavior_weight in ("trace", "none")
    return objective not in WITHOUT_PROXIMAL or mask == "erc" or by_ratio


DISCRETE_ONLY = ("dppo_tv", "dppo_kl")
"""Objectives of probabilities, which continuous actions do not have; their densities may be far above 1."""

ONE_LEARNER = {"bapo": "moves its bounds by the sums of a minibatch", "m2po": "sorts the samples of an update"}
"""Objectives and masks that need all samples in one place, and why: a job with several ranks is refused."""


def users(option: str) -> list[str]:
    """Objectives, then masks, that read an option; all objectives read clip."""
    return [name for table in (USES, MASK_USES) for name, used in table.items() if option in used]


def unused_options(objective: str, mask: str, options: Mapping[str, float | None]) -> list[str]:
    """Names of options that are not at their default although neither the objective nor the mask reads them.

    None and 0 both mean off. ValueError for an option that does not exist.
    """
    used, values = ("clip", *USES[objective], *MASK_USES[mask]), Options.create(options)._asdict()
    changed = [name for name, default in Options._field_defaults.items() if (values[name] or 0) != (default or 0)]
    return [name for name in changed if name not in used]
