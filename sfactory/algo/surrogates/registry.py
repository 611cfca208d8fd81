"""All objectives by name."""

from dataclasses import replace

from sfactory.algo.surrogates.clipped import decoupled, ppo
from sfactory.algo.surrogates.objective import SurrogateObjective
from sfactory.algo.surrogates.options import USES
from sfactory.algo.surrogates.penalties import decoupled_kl, mdpo
from sfactory.algo.surrogates.policy_gradients import cispo, dppo_tv, impala, is_pg, topr
from sfactory.algo.surrogates.smooth import mhpo, sapo

_OBJECTIVES = {
    "ppo": SurrogateObjective(ppo, divides_by_behavior=False),
    "decoupled": SurrogateObjective(decoupled),
    "decoupled_kl": SurrogateObjective(decoupled_kl),
    "impala": SurrogateObjective(impala, divides_by_behavior=False),
    "is_pg": SurrogateObjective(is_pg),
    "cispo": SurrogateObjective(cispo),
    "topr": SurrogateObjective(topr),
    "mdpo": SurrogateObjective(mdpo),
    "dppo_tv": SurrogateObjective(dppo_tv),
    "sapo": SurrogateObjective(sapo),
    "mhpo": SurrogateObjective(mhpo),
}

SURROGATES: dict[str, SurrogateObjective] = {
    name: replace(objective, uses=USES[name]) for name, objective in _OBJECTIVES.items()
}
