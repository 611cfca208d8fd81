"""Actor-critic network with one more number for every action, for its advantage (DAE, arXiv 2109.06093).

Legend as in `actor_critic`: N samples, F features, K = 2 k columns of `WithAdvantages`, k actions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sfactory.model.actor_critic import ActorCritic
from sfactory.model.distributions import ActionDistribution, ActionLeafLike
from sfactory.model.encoders import orthogonal
from sfactory.model.further_columns import WithAdvantages


class AdvantageNetwork(ActorCritic):
    """The advantage head reads what the value head reads: with `separate` the features of the critic.

    Its outputs are the last k columns of the parameters, not centered. A constant that is added to them has no effect.
    """

    distribution: WithAdvantages

    def _distribution(self, actions: Mapping[str, ActionLeafLike], squash: bool) -> ActionDistribution:
        return WithAdvantages(actions)

    def _add_heads(self, log_std_init: float, median: bool) -> None:
        super()._add_heads(log_std_init, median)
        actions = self.distribution.num_params // 2
        critic_size = (self.critic or self.trunk).out_size
        self.advantage_head = orthogonal(nn.Linear(critic_size, actions), 0.1)  # as in hrpan/dae

    def _outputs(self, x: Tensor, y: Tensor, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        params, value = super()._outputs(x, y, obs)
        return torch.cat([params, self.advantage_head(y)], -1), value

    def _value_heads(self) -> list[nn.Module]:
        """The advantage head among them: advantages have the scale of values, and the shift has no effect on them."""
        return [*super()._value_heads(), self.advantage_head]
