"""The distribution of a policy's actions for one observation or a batch of N, as numbers of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from sfactory.model.distributions import ActionDistribution

ATANH_LIMIT = 1.0 - 1e-6
"""Largest absolute value of a squashed action, as a share of its bounds, whose sample is computed."""


class PolicyDistribution:
    """What the policy may do, and how likely it is. Created by `Policy.distribution`.

    Arrays have a leading dimension N for a batch. Leaves of a Dict or Tuple action are a dict by name; where the action
    is a single leaf, its value itself is returned.
    """

    def __init__(
        self,
        distribution: ActionDistribution,
        params: torch.Tensor,
        single: bool,
        as_leaves: Callable[[Any, int], dict[str, np.ndarray]],
    ) -> None:
        """params: [N, K]. single: whether they are those of one observation. as_leaves: env actions -> leaves."""
        self._distribution, self._params, self._single, self._as_leaves = distribution, params, single, as_leaves

    @property
    def probs(self) -> Any:
        """Probability of each choice [k] or [N, k], counted from the first one; a list of them for several numbers.

        None for an action of continuous numbers.
        """
        import torch

        found: dict[str, Any] = {}
        for part, values in self._columns():
            heads = values.split(list(part.sizes), -1) if part.discrete else ()
            arrays = [self._rows(torch.softmax(head.float(), -1)) for head in heads]
            found[part.name] = arrays[0] if len(arrays) == 1 else (arrays or None)
        return _alone(found)

    @property
    def mean(self) -> Any:
        """Mean of the normal distribution [d] or [N, d] of continuous numbers; None for choices.

        With `model.squash` that of the sample, of which the environment gets the tanh, scaled to the bounds.
        """
        return _alone({p.name: None if p.discrete else self._rows(x.chunk(2, -1)[0]) for p, x in self._columns()})

    @property
    def std(self) -> Any:
        """Standard deviation of the normal distribution, as `mean`."""
        return _alone({p.name: None if p.discrete else self._rows(x.chunk(2, -1)[1].exp()) for p, x in self._columns()})

    @property
    def entropy(self) -> Any:
        """Entropy in nats, [] or [N], of all leaves together; that of densities may be negative."""
        return self._rows(self._distribution.entropy(self._params))

    def log_prob(self, action: Any) -> Any:
        """Log-probability (log-density of continuous numbers) of what `env.step` takes, [] or [N], in nats.

        Outside the bounds of a Box, and at them, that of the value given: the environment receives clipped samples.
        """
        import torch

        leaves = self._as_leaves(action, len(self._params))
        tensors = {name: torch.from_numpy(np.ascontiguousarray(leaf)) for name, leaf in leaves.items()}
        return self._rows(self._distribution.log_prob(self._params, tensors))

    def _columns(self) -> list[tuple[Any, torch.Tensor]]:
        log_probs = getattr(self._distribution, "log_probs", None)  # of action values
        params = self._params if log_probs is None else log_probs(self._params)
        return [(part, params[..., part.params]) for part in self._distribution.parts]

    def _rows(self, x: torch.Tensor) -> Any:
        array = x.numpy()
        return array if not self._single else (float(array[0]) if array.ndim == 1 else array[0])

    def __repr__(self) -> str:
        words = []
        for name in ("probs", "mean", "std"):
            value = getattr(self, name)
            if value is not None:
                words.append(
                    f"{name}={np.array2string(value, precision=3) if isinstance(value, np.ndarray) else value}"
                )
        return f"<PolicyDistribution {', '.join(words)}>"


def _alone(leaves: dict[str, Any]) -> Any:
    """The value of a single leaf, or else the dict."""
    return next(iter(leaves.values())) if list(leaves) == ["action"] else leaves
