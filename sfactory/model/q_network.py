"""Network of action values, for discrete actions.

Legend as in `actor_critic`: N samples, K = k + 1 parameters of `EpsilonGreedy`, the values of k actions and epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfactory.model.actor_critic import ActorCritic
from sfactory.model.distributions import MASKED_LOGIT, ActionDistribution, ActionLeafLike
from sfactory.model.encoders import orthogonal
from sfactory.model.epsilon_greedy import EpsilonGreedy


class QNetwork(ActorCritic):
    """Values of all actions, as parameters of the epsilon-greedy policy; the value of a state is the largest of them.

    Epsilon is a buffer: it is published and saved with the weights, so that every step was acted with the epsilon that
    belongs to its version.
    """

    distribution: EpsilonGreedy
    epsilon: Tensor
    """[], share of random actions."""

    def __init__(self, *args: Any, epsilon: float = 0.0, **kwargs: Any) -> None:
        """Arguments of `ActorCritic`, but for `separate`, `log_std_init` and `squash`."""
        super().__init__(*args, **kwargs)
        self.register_buffer("epsilon", torch.tensor(epsilon))

    def _distribution(self, actions: Mapping[str, ActionLeafLike], squash: bool) -> ActionDistribution:
        return EpsilonGreedy(actions)

    def _add_heads(self, log_std_init: float, median: bool) -> None:
        self.median_head = None
        self.q_head = orthogonal(nn.Linear(self.trunk.out_size, self.distribution.num_params - 1), 1.0)

    def _outputs(self, x: Tensor, y: Tensor, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        q = self.q_head(x)
        if self.mask:  # the final observation of an episode may allow nothing: then all count
            possible = obs[self.mask] != 0
            q = torch.where(possible | ~possible.any(-1, keepdim=True), q, MASKED_LOGIT)
        return torch.cat([q, self.epsilon.expand(q.shape[0], 1)], -1), q.max(-1).values

    def rescale_value(self, factor: Tensor, shift: Tensor) -> None:
        raise NotImplementedError("action values have no head for the value of a state")
