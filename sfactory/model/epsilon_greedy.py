"""The epsilon-greedy policy of action values, as an action distribution. Legend: [...] any leading axes, k actions."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfactory.model.distributions import MASKED_LOGIT, ActionDistribution, ActionLeafLike, at_least_single


class EpsilonGreedy(ActionDistribution):
    """The action of highest value, or with probability epsilon any of those that are possible, each as often.

    ``params`` are [..., k + 1]: the values of k actions, `MASKED_LOGIT` for impossible ones, then epsilon. All that
    `ActionDistribution` computes, but for `score_square`, is that of this policy. Raises ValueError unless there is one
    action, discrete, with one head: the values of several would be those of all their combinations.
    """

    def __init__(self, actions: Mapping[str, ActionLeafLike]) -> None:
        super().__init__(actions)
        if not self._single:
            raise ValueError("action values need one discrete action")
        self.num_params += 1

    def log_probs(self, params: Tensor) -> Tensor:
        """Log-probability of every action [..., k]; `MASKED_LOGIT` where it is minus infinity."""
        values, epsilon = at_least_single(params).tensor_split([-1], -1)
        possible = values > 0.5 * MASKED_LOGIT
        share = epsilon / possible.sum(-1, keepdim=True).clamp(min=1)
        best = values.argmax(-1, keepdim=True)
        p = torch.where(possible, share, 0.0).scatter_add(-1, best, 1.0 - epsilon)
        return p.log().clamp(min=MASKED_LOGIT)

    def sample_and_log_prob(self, params: Tensor, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return super().sample_and_log_prob(self.log_probs(params), noise)

    def entropy(self, params: Tensor) -> Tensor:
        return super().entropy(self.log_probs(params))

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        return super().kl(self.log_probs(p), self.log_probs(q))

    def score_square(self, params: Tensor, action: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError("the log-probability of an epsilon-greedy action has no derivative in the values")

    def mode(self, params: Tensor) -> dict[str, Tensor]:
        part = self.parts[0]
        return {part.name: params[..., :-1].argmax(-1).reshape((*params.shape[:-1], *part.shape))}

    def shortfall(self, params: Tensor, action: Mapping[str, Tensor]) -> Tensor:
        """Difference of the values, [...]: epsilon does not matter."""
        return self.value(params, self.mode(params)) - self.value(params, action)

    def value(self, params: Tensor, action: Mapping[str, Tensor]) -> Tensor:
        """Values [...] of actions: params [..., k + 1], action name -> [..., *leaf.shape]."""
        taken = action[self.parts[0].name].reshape(*params.shape[:-1], 1).long()
        return params.gather(-1, taken).squeeze(-1)

    def _log_prob_entropy(
        self, params: Tensor, action: Mapping[str, Tensor], *, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        return super()._log_prob_entropy(self.log_probs(params), action, with_entropy=with_entropy)
