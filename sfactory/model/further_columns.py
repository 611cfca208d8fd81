"""Action distributions of networks that compute more numbers for a row than the distribution has parameters.

The further numbers stand beside the parameters, in the last columns: slots store them, and nothing else has to know.
Legend as in `distributions`: [...] any leading axes, K parameters; k actions.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from sfactory.model.distributions import ActionDistribution, ActionLeafLike, at_least_single


class WithFurtherColumn(ActionDistribution):
    """`ActionDistribution` for ``params`` [..., K + n] with n more columns, one if not said, which nothing here reads.

    The other functions read the columns of every leaf by their places.
    """

    def __init__(self, actions: Mapping[str, ActionLeafLike], squash: bool = False, further: int = 1) -> None:
        super().__init__(actions, squash)
        self._own = self.num_params
        self.num_params += further

    def sample_and_log_prob(self, params: Tensor, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return super().sample_and_log_prob(params[..., : self._own], noise)

    def _log_prob_entropy(
        self, params: Tensor, action: Mapping[str, Tensor], *, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        return super()._log_prob_entropy(params[..., : self._own], action, with_entropy=with_entropy)


class WithAdvantages(WithFurtherColumn):
    """The policy over k actions, and a number for each of them that is learned as its advantage.

    ``params`` are [..., 2 k]: k logits, then the k numbers, which no probability depends on. Raises ValueError unless
    there is one action, discrete, with one head: several would have as many advantages as combinations.
    """

    def __init__(self, actions: Mapping[str, ActionLeafLike]) -> None:
        plain = ActionDistribution(actions)
        if not plain._single:
            raise ValueError("advantages of all actions need one discrete action")
        super().__init__(actions, further=plain.num_params)

    def log_probs(self, params: Tensor) -> Tensor:
        """Log-probability of every action, params [..., 2 k] -> [..., k]."""
        return torch.log_softmax(at_least_single(params)[..., : self._own], -1)

    def advantages(self, params: Tensor) -> Tensor:
        """The numbers of all actions as the network computes them, params [..., 2 k] -> [..., k]."""
        return at_least_single(params)[..., self._own :]

    def of_action(self, x: Tensor, action: Mapping[str, Tensor]) -> Tensor:
        """The column of the action taken: x [..., k], action name -> [..., *leaf.shape] -> [...]."""
        taken = action[self.parts[0].name].reshape(*x.shape[:-1], 1).long()
        return x.gather(-1, taken).squeeze(-1)
