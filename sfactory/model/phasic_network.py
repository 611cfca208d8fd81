"""Actor-critic network with a second value head, on the features of the policy (PPG, arXiv 2009.04416).

Legend as in `actor_critic`: N samples, F features, K = parameters of the distribution and the auxiliary value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfactory.model.actor_critic import ActorCritic
from sfactory.model.distributions import ActionDistribution, ActionLeafLike
from sfactory.model.encoders import orthogonal
from sfactory.model.further_columns import WithFurtherColumn


class PhasicNetwork(ActorCritic):
    """The auxiliary value is the last column of the parameters. It trains the policy's trunk, in auxiliary phases only.

    With `separate` the value head has a trunk of its own (`dual` of openai/phasic-policy-gradient). Otherwise it reads
    the features of the policy without changing them (`detach`).
    """

    def _distribution(self, actions: Mapping[str, ActionLeafLike], squash: bool) -> ActionDistribution:
        return WithFurtherColumn(actions, squash)

    def _add_heads(self, log_std_init: float, median: bool) -> None:
        super()._add_heads(log_std_init, median)
        self.auxiliary_head = orthogonal(nn.Linear(self.trunk.out_size, 1), 1.0)

    def _critic_features(self, x: Tensor, obs: Mapping[str, Tensor]) -> Tensor:
        return super()._critic_features(x.detach(), obs)

    def _outputs(self, x: Tensor, y: Tensor, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        params, value = super()._outputs(x, y, obs)
        return torch.cat([params, self.auxiliary_head(x)], -1), value

    def _value_heads(self) -> list[nn.Module]:
        return [*super()._value_heads(), self.auxiliary_head]
