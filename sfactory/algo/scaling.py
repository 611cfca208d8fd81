"""The settings that go with another batch size, so that learning curves over env steps stay the same.

``factor`` c *divides* the batch, as in the paper; 0.25 is a batch four times larger. Both rules are pure maps
from settings to settings, run once at start-up and printed. Only settings that are present are looked at, all
others pass.

    lr                learning rate of Adam          sgd_lr           learning rate of plain SGD
    beta1, beta2      decays of Adam                 adam_eps         its epsilon
    center_of_mass    of the EWMA proximal policy, in optimizer steps (beta_prox: the same as a decay)
    advantage_span    of the advantage normaliser, in updates (beta_adv: the same as a decay)
    envs_per_group    where the batch comes from     minibatches      optimizer steps per epoch
    forced_lag        in updates                     n_pi             PPG's updates per auxiliary phase
    epochs            only looked at
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Row(NamedTuple):
    """One changed setting, ready to be printed."""

    name: str
    before: float
    after: float
    why: str


class Rescaled(NamedTuple):
    settings: dict[str, float]
    """The new settings, unchanged ones included."""
    rows: list[Row]
    """What changed."""
    warnings: list[str]
    """Where the rule's assumptions do not hold."""


Rule = Callable[[float, float], float]
"""(value, c) -> new value."""


def center_of_mass(decay: float) -> float:
    """Mean age of an exponential average: beta / (1 - beta)."""
    return decay / (1.0 - decay)


def _decay_by_center(decay: float, c: float) -> float:
    """The decay whose centre of mass is c times as far: beta = 1 - 1 / (1 + c * com)."""
    return 1.0 - 1.0 / (1.0 + c * center_of_mass(decay))


def _decay_by_span(decay: float, c: float) -> float:
    """The decay whose span 2 / (1 - beta) - 1 is c times as long, at least 1 (one update)."""
    return 1.0 - 2.0 / (1.0 + _span(2.0 / (1.0 - decay) - 1.0, c))


def _span(span: float, c: float) -> float:
    return max(1.0, span * c)


_ENVS: dict[str, tuple[Rule, str]] = {
    "envs_per_group": (lambda x, c: x / c, "the batch is divided by c through fewer environments; T stays"),
    "forced_lag": (lambda x, c: x * c, "c times as many updates in the same env steps"),
}

HILTON: dict[str, tuple[Rule, str]] = {
    **_ENVS,
    "lr": (lambda x, c: x / math.sqrt(c), "Adam: divided by sqrt(c)"),
    "sgd_lr": (lambda x, c: x / c, "SGD: divided by c"),
    "beta1": (lambda x, c: x ** (1.0 / c), "Adam: beta^(1/c), the same memory in env steps"),
    "beta2": (lambda x, c: x ** (1.0 / c), "Adam: beta^(1/c), the same memory in env steps"),
    "center_of_mass": (lambda x, c: x * c, "proximal average: the same age in env steps"),
    "beta_prox": (_decay_by_center, "proximal average: the same age in env steps"),
    "advantage_span": (_span, "advantage normaliser: the same span in env steps"),
    "beta_adv": (_decay_by_span, "advantage normaliser: the same span in env steps"),
    "n_pi": (lambda x, c: x * c, "PPG: the same env steps per auxiliary phase"),
}
"""Hilton et al. 2021, arXiv 2110.00641, sec. 4: the steps per update stay, so minibatches shrink with the
batch."""

MORE_MINIBATCHES: dict[str, tuple[Rule, str]] = {
    **_ENVS,
    "minibatches": (
        lambda x, c: x / c,
        "minibatch size and learning rate stay; their number follows the batch",
    ),
    "advantage_span": (_span, "advantage normaliser: the same span in env steps"),
    "beta_adv": (_decay_by_span, "advantage normaliser: the same span in env steps"),
    "n_pi": (lambda x, c: x * c, "PPG: the same env steps per auxiliary phase"),
}
"""arXiv 2603.06009: multiply the number of minibatches, nothing of the optimizer. Its averages count
optimizer steps, which keep their size, so they stay too."""

RULES = {"hilton": HILTON, "more_minibatches": MORE_MINIBATCHES}
_WHOLE = ("envs_per_group", "forced_lag", "minibatches", "n_pi")


def rescale(settings: Mapping[str, float], factor: float, rule: str = "hilton") -> Rescaled:
    """Settings for a batch divided by ``factor``, the rows that changed, and warnings.

    Raises ValueError where a count would not be whole: rounding it would silently change the batch.
    """
    if not (math.isfinite(factor) and factor > 0.0):
        raise ValueError(f"batch factor is {factor}, expected a positive number (4: a quarter of the batch)")
    if rule not in RULES:
        raise ValueError(f"batch rule is {rule!r}, expected one of {', '.join(RULES)}")
    new, rows = dict(settings), []
    for name, (change, why) in RULES[rule].items():
        if name not in settings:
            continue
        before = settings[name]
        after = before if factor == 1.0 else change(before, factor)
        if name in _WHOLE:
            if abs(after - round(after)) > 1e-9 or (before >= 1 and after < 1):
                raise ValueError(
                    f"{name} {before:g} becomes {after:g} at batch factor {factor:g}, expected a whole number"
                )
            after = type(before)(round(after))
        if after != before:
            new[name] = after
            rows.append(Row(name, before, after, why))
    return Rescaled(new, rows, _warnings(settings, new, factor, rule))


def _warnings(settings: Mapping[str, float], new: Mapping[str, float], factor: float, rule: str) -> list[str]:
    if factor == 1.0:
        return []
    found = []
    epochs = settings.get("epochs", 1)
    if epochs != 1:
        found.append(f"epochs is {epochs:g}: the rules hold for one epoch only")
    if rule == "hilton":
        epsilon = settings.get("adam_eps", 0.0)
        if epsilon > 1e-7:
            invariant = epsilon * math.sqrt(factor)
            found.append(
                f"adam_eps is {epsilon:g} and is not rescaled: the rule takes it as far below the gradients, "
                f"whose noise grows by sqrt(c); an invariant epsilon would be {invariant:.3g}"
            )
        if factor < 1.0:
            found.append("a larger batch stays invariant only while a minibatch is below the critical batch size")
    span = settings.get("advantage_span")
    if span is not None and span * factor < 1.0:
        found.append(f"advantage_span would be {span * factor:g} updates; it stays at 1, the shortest there is")
    return found
