"""One entry of the registry: a loss function and the rules for calling it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sfactory.algo.surrogates.options import Options
from sfactory.algo.surrogates.ratios import Ratios, Surrogate, SurrogateInput, compute_ratios


@dataclass(frozen=True)
class SurrogateObjective:
    """One entry of `SURROGATES`: a loss function and the rules for calling it."""

    loss: Callable[[Ratios, Options], Tensor | Surrogate]
    """Loss per sample [...]; a `Surrogate` if the objective has its own definition of ``clipped``."""
    uses: tuple[str, ...] = ()
    """Options that the loss reads besides clip, which ``clipped`` always needs. Without weight_cap, w has no cap."""
    divides_by_behavior: bool = True
    """False: the loss has no behavior weight of its own, only that of the trace (`weight_rule.NO_OWN_WEIGHT`)."""
    needs: tuple[str, ...] = ()
    """Fields of `SurrogateInput` that the loss reads besides those that every minibatch has."""
    whole_minibatch: bool = False
    """Whether samples depend on each other: a minibatch cannot be divided into parts."""

    def own_weight(self, behavior_weight: str) -> str:
        """Where this objective applies the weight; in the trace or nowhere, unless it divides by behavior itself."""
        if self.divides_by_behavior:
            return behavior_weight
        return {"surrogate": "none", "twice": "trace"}.get(behavior_weight, behavior_weight)

    def __call__(self, x: SurrogateInput, *, behavior_weight: str = "surrogate", **options: float | None) -> Surrogate:
        """Loss and clipped samples of one minibatch [...]. ``options`` are fields of `Options`."""
        o = Options.create(options)
        behavior_weight = self.own_weight(behavior_weight)
        q = compute_ratios(x, behavior_weight, o.clip, o.weight_cap if "weight_cap" in self.uses else None)
        result = self.loss(q, o)
        if not isinstance(result, Surrogate):
            result = Surrogate(result, q.clipped)
        return result._replace(loss=result.loss.masked_fill(~x.valid, 0.0))
