"""All objectives by name."""

from dataclasses import replace

from sfactory.algo.surrogates.clipped import bapo, decoupled, geppo, ppo
from sfactory.algo.surrogates.objective import SurrogateObjective
from sfactory.algo.surrogates.options import USES
from sfactory.algo.surrogates.penalties import decoupled_kl, mdpo, opmd, r2vpo
from sfactory.algo.surrogates.policy_gradients import (
    asymre,
    cispo,
    dispo,
    dppo_kl,
    dppo_tv,
    impala,
    is_pg,
    minpro,
    rec_one_side,
    rec_ring,
    rec_wide,
    topr,
)
from sfactory.algo.surrogates.smooth import bpo, mhpo, sapo

_OBJECTIVES = {
    "ppo": SurrogateObjective(ppo, divides_by_behavior=False),
    "decoupled": SurrogateObjective(decoupled),
    "decoupled_kl": SurrogateObjective(decoupled_kl),
    "impala": SurrogateObjective(impala, divides_by_behavior=False),
    "is_pg": SurrogateObjective(is_pg),
    "cispo": SurrogateObjective(cispo),
    "topr": SurrogateObjective(topr),
    "mdpo": SurrogateObjective(mdpo, needs=("annealing",)),
    "dppo_tv": SurrogateObjective(dppo_tv),
    "dppo_kl": SurrogateObjective(dppo_kl),
    "sapo": SurrogateObjective(sapo),
    "mhpo": SurrogateObjective(mhpo),
    "dispo": SurrogateObjective(dispo),
    "rec_one_side": SurrogateObjective(rec_one_side),
    "rec_wide": SurrogateObjective(rec_wide),
    "rec_ring": SurrogateObjective(rec_ring),
    "opmd": SurrogateObjective(opmd),
    "asymre": SurrogateObjective(asymre),
    "geppo": SurrogateObjective(geppo),
    "minpro": SurrogateObjective(minpro, needs=("prefix",)),
    "bapo": SurrogateObjective(bapo, whole_minibatch=True),
    "r2vpo": SurrogateObjective(r2vpo, needs=("dual",), whole_minibatch=True),
    "bpo": SurrogateObjective(bpo, needs=("action_value",)),
}

SURROGATES: dict[str, SurrogateObjective] = {
    name: replace(objective, uses=USES[name]) for name, objective in _OBJECTIVES.items()
}
